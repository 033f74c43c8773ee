"""Rolling jobs on synthetic days: a raw folder that grows, a small model, and what a job leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jobs import words

from recmtl.rolling.record import DayRecord, load_records
from recmtl.synthetic.synthesize import synthesize

SIZES = {
    "training.batch_size": 128,
    "training.max_epochs": 2,
    "training.device": "cpu",
    "checkpoint.every_steps": 10,
    "metrics.tensorboard": False,
    "metrics.monitor": "like.auc",
    "model.experts": 2,
    "model.expert_widths": 16,
    "embedding.dim": 8,
    "embedding.lr": 0.05,
}


def write_days(folder: Path, days: int) -> Path:
    """Synthetic days of 6,000 events, which `add_days` takes into a raw folder."""
    synthesize(folder, 6000 * days, days=days, drift=True)
    return folder


def add_days(raw: Path, days: Path, *numbers: int) -> None:
    """Let a raw folder grow by some days, from 1 on, or replace these."""
    for number in numbers:
        for place in (f"202305{number:02}", f"truth/202305{number:02}"):
            shutil.copytree(days / place, raw / place, dirs_exist_ok=True)


def spoil(raw: Path, number: int) -> None:
    """Deal out the kinds of events of a day at random, so that nothing tells views and likes."""
    rng = np.random.default_rng(0)
    for path in sorted((raw / f"202305{number:02}").glob("*.parquet")):
        table = pq.read_table(path)
        place = table.schema.get_field_index("event_id")
        dealt = table.column(place).take(rng.permutation(len(table)))
        pq.write_table(table.set_column(place, "event_id", dealt), path)


def command(raw: Path, out: Path, *options: object) -> list[str]:
    """The words of `recmtl roll` for such a job."""
    return ["merrec_time", str(raw), str(out), "mmoe", *map(str, options), *words(SIZES)]


def records(out: Path) -> list[DayRecord]:
    """What a job says of its days, but for what they cost."""
    return [replace(record, cost={}) for record in load_records(out)]


def served(out: Path) -> str:
    """Where the link leads."""
    return str((out / "current").readlink())


def digests(out: Path, day: str) -> dict[str, object]:
    """Of the files of a day's export that hold what the model learned."""
    manifest = json.loads((out / "exports" / day / "manifest.json").read_text())
    entries = manifest.get("files", manifest)
    return {name: entry for name, entry in entries.items() if name.startswith("tables/")}
