"""The README's recipe works as it stands there."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

README = Path(__file__).parents[2] / "README.md"


def write_logs(folder: Path, rows: int = 3000) -> None:
    rng = np.random.default_rng(0)
    clicked = rng.random(rows) < 0.4
    start = datetime(2026, 1, 1)
    columns = {
        "user": [f"u{i}" for i in rng.integers(0, 40, rows)],
        "item": [f"i{i}" for i in rng.integers(0, 300, rows)],
        "category": rng.integers(0, 9, rows),
        "price": rng.lognormal(3, 1, rows),
        "ts": [start + timedelta(seconds=i) for i in range(rows)],
        "clicked": clicked,
        "bought": clicked & (rng.random(rows) < 0.3),
    }
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "day-1.parquet")


def test_recipe_for_ones_own_logs(run_recmtl, tmp_path):
    [recipe] = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "shop.toml").write_text(recipe)
    write_logs(tmp_path / "logs")
    prepared = run_recmtl("prepare", tmp_path / "shop.toml", tmp_path / "logs", tmp_path / "data")
    assert prepared.returncode == 0, prepared.stderr
    dataset = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert dataset["rows"] == {"train": 2400, "val": 300, "test": 300}
    trained = run_recmtl(
        *("train", "mmoe", "--data", tmp_path / "data", "--run", tmp_path / "run", "--training.max_epochs", 1)
    )
    assert trained.returncode == 0, trained.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["test"]) == {"click", "buy"}
    assert results["test"]["click"]["rows"] == 300
    assert results["test"]["click"]["gauc"] is not None
