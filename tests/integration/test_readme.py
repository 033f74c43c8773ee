"""What README and docs/use.md tell to type works as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import wait_until_ready

CHECKOUT = Path(__file__).parents[2]
README, USE, SERVING = CHECKOUT / "README.md", CHECKOUT / "docs" / "use.md", CHECKOUT / "docs" / "serving.md"


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


@pytest.fixture(scope="module")
def shop(run_recmtl, tmp_path_factory) -> Path:
    """A folder in which the commands of "Your own logs" were run as they stand there, for one epoch."""
    folder = tmp_path_factory.mktemp("shop")
    [recipe] = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    (folder / "shop.toml").write_text(recipe)
    write_logs(folder / "logs")
    prepare, train = commands("Your own logs")
    run_in(folder, run_recmtl, prepare, [*train, "--training.max_epochs", "1"])
    return folder


def section(name: str) -> str:
    """The text of a section without those below it."""
    [text] = re.findall(rf"^## {name}\n(.*?)^##", README.read_text(), re.DOTALL | re.MULTILINE)
    return text


def commands(name: str) -> list[list[str]]:
    """The words of every `recmtl` in a section."""
    return [shlex.split(line)[1:] for line in section(name).splitlines() if line.startswith("    recmtl ")]


def run_in(folder: Path, run_recmtl, *all_words: list[str]) -> None:
    """Run commands in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in all_words:
            ended = run_recmtl(*words)
            assert ended.returncode == 0, ended.stderr


def run_python(folder: Path, code: str) -> str:
    """Run a page's example in a folder; returns what it printed."""
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_recipe_for_ones_own_logs(shop):
    dataset = json.loads((shop / "data" / "dataset.json").read_text())
    assert dataset["rows"] == {"train": 2400, "val": 300, "test": 300}
    results = json.loads((shop / "runs" / "mmoe" / "results.json").read_text())
    assert set(results["test"]) == {"click", "buy"}
    assert results["test"]["click"]["rows"] == 300
    assert results["test"]["click"]["gauc"] is not None


@pytest.fixture(scope="module")
def exported(shop, run_recmtl) -> Path:
    """The same folder after the first command of "Use it", which exports the model."""
    run_in(shop, run_recmtl, commands("Use it")[0])
    return shop


@pytest.mark.slow
def test_a_trained_model_is_used_as_the_pages_say(exported, run_recmtl):
    shop = exported
    run_in(shop, run_recmtl, *commands("Use it")[1:])
    scored = pq.read_table(shop / "predictions")
    assert scored.num_rows == 300
    assert min(scored["ts"].to_pylist()) == datetime(2026, 1, 1, 0, 45)
    assert scored.column_names[-2:] == ["p_click", "p_buy"]
    assert pq.read_table(shop / "items.parquet").num_rows > 100
    [example] = re.findall(r"```python\n(.*?)```", section("Use it"), re.DOTALL)
    assert run_python(shop, example).startswith("pyarrow.Table\np_click: float\np_buy: float\nitem: string\n")
    examples = re.findall(r"```python\n(.*?)```", USE.read_text(), re.DOTALL)
    assert len(examples) > 2
    run_python(shop, "\n".join(examples))


def port_of(words: list[str]) -> int:
    """The port that a command names; skips where something else listens there."""
    port = int(words[words.index("--port") + 1])
    with socket.socket() as taken:
        if taken.connect_ex(("127.0.0.1", port)) == 0:
            pytest.skip(f"port {port}, which the pages name, is taken")
    return port


@pytest.mark.slow
def test_a_model_is_served_as_the_pages_say(exported, tmp_path):
    [serve] = commands("Serve it")
    [curl] = re.findall(r"^    (curl .*?)\n\n", section("Serve it"), re.DOTALL | re.MULTILINE)
    port = port_of(serve)
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "recmtl", *serve], cwd=exported, stderr=log)
    try:
        wait_until_ready(server, port, tmp_path / "log")
        ended = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60)
        answer = json.loads(ended.stdout)
        assert answer["model"] == "shop"
        assert [list(row) for row in answer["predictions"]] == [["click", "buy"]] * 2
        assert all(0 < value < 1 for row in answer["predictions"] for value in row.values())
        [example] = re.findall(r"```python\n(.*?)```", SERVING.read_text(), re.DOTALL)
        first, second = run_python(exported, example).splitlines()
        # The last item of the user was unknown and is known now.
        assert first != second
    finally:
        server.terminate()
        server.wait(60)
