"""What a delta of an export takes beside the whole: days of a log that drifts, over large tables.

    python benchmarks/export_delta.py [--users 500000] [--items 500000] [--events 50000]

On the first day every user and item is there once; then come days of EVENTS events, one in fifty of a new user and one
in fifty of a new item. Popularity of users and items falls as 1/rank^0.8. Days are prepared with `--extend` and trained
for one epoch with `--start-from`; what is measured is the step from the second day to the third, whose parents know
generations. The first day is trained for a few steps only: rows that nobody touches later do not change.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from common import RESULTS, machine, markdown_table, write_results

from recmtl.inference.delta import Delta
from recmtl.inference.tables import DTYPES

RECIPE = """
name = "drift"
sql = 'select *, lag(item) over (partition by "user" order by "at") as previous from raw'
[[table]]
name = "item"
{table}
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "previous"
table = "item"
[[task]]
name = "click"
label = "click"
[split]
by = "time"
column = "at"
val = 0.0
test = 0.0
"""
DAYS = 3
EXPONENT = 0.8
NEW = 0.02
"""Share of a day's events that are of new users, and of new items."""
KINDS = {
    "tables": "tables/",
    "keys and generations": "encoder/",
    "vocabularies": "vocab/",
    "network, signature and texts": "",
}
"""Parts of an export, by how their names begin; the last has all others."""


@dataclass
class Options:
    """What the days are like."""

    users: int = 500_000
    """On the first day."""
    items: int = 500_000
    """The same."""
    events: int = 50_000
    """Of a day."""
    dim: int = 32
    """Of the tables."""
    bounded: bool = False
    """Items have `max_rows`, so that new ones get the ids of those that were seen longest ago."""
    work: Path | None = None
    """Folder that keeps what is made, and is gone on with; none: a temporary one."""
    out: Path = RESULTS
    """Folder for the results."""


def write_day(options: Options, day: int, folder: Path) -> None:
    """Events of a day; labels depend on user and item."""
    rng = np.random.default_rng(day)
    if day == 0:
        count = max(options.users, options.items)
        users, items = (rng.permutation(count) % size for size in (options.users, options.items))
    else:
        count = options.events
        users, items = (_popular(rng, size, count, day) for size in (options.users, options.items))
    score = np.sin(users.astype(float)) + np.cos(items.astype(float)) + rng.normal(size=count)
    columns = {
        "at": pa.array(np.arange(count) + day * 10**9),
        "user": pa.array(users),
        "item": pa.array(np.char.add("item-", items.astype(str))),
        "click": pa.array((score > 1).astype(np.int8)),
    }
    pq.write_table(pa.table(columns), folder / f"{day}.parquet")


def _popular(rng: np.random.Generator, size: int, count: int, day: int) -> np.ndarray:
    """Of `size` values the popular ones more often, and new ones of the day."""
    weights = np.cumsum(np.arange(1, size + 1) ** -EXPONENT)
    values = np.searchsorted(weights, rng.random(count) * weights[-1])
    new = rng.random(count) < NEW
    values[new] = size + (day - 1) * count + rng.integers(0, count, new.sum())
    return values


def recmtl(*words: object) -> None:
    """Run a command, unless its last word, a folder to write, is there."""
    if not Path(str(words[-1])).exists():
        subprocess.run([sys.executable, "-m", "recmtl", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def make_days(options: Options, work: Path) -> None:
    """Prepare and train every day."""
    raw = work / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    table = f"max_rows = {options.items + 2}" if options.bounded else ""
    (work / "drift.toml").write_text(RECIPE.format(table=table))
    for day in range(DAYS):
        write_day(options, day, raw)
        data, run = work / f"data{day}", work / f"run{day}"
        extend = ["--extend", work / f"data{day - 1}"] if day else []
        recmtl("prepare", work / "drift.toml", raw, *extend, data)
        start = ["--start-from", work / f"run{day - 1}"] if day else []
        steps = {"training.max_epochs": 1, "training.max_steps": 0 if day else 5, "embedding.dim": options.dim}
        sizes = [word for key, value in steps.items() for word in (f"--{key}", value)]
        recmtl("train", "mmoe", "--training.device", "cpu", *sizes, *start, "--data", data, "--run", run)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of an export by part, or of a delta."""
    found: dict[str, int] = defaultdict(int)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        for part in ("whole/", "patches/"):
            name = name.removeprefix(part)
        found[next(kind for kind, start in KINDS.items() if name.startswith(start))] += path.stat().st_size
    return dict(found)


def measure(work: Path, dtype: str) -> tuple[dict[str, Any], list[list[object]]]:
    """Export the second day and the third, and the delta from one to the other; returns results and lines."""
    before, after, delta, applied = (work / f"{name}-{dtype}" for name in ("before", "after", "delta", "applied"))
    last = DAYS - 1
    recmtl("export", work / f"run{last - 1}", "--dtype", dtype, before)
    recmtl("export", work / f"run{last}", "--dtype", dtype, after)
    recmtl("export", work / f"run{last}", "--dtype", dtype, "--delta-from", before, delta)
    recmtl("apply-delta", before, delta, applied)
    described = Delta.load(delta)
    whole, part = sizes(after), sizes(delta)
    tables = {name: vars(rows) for name, rows in described.tables.items()}
    changed, rows = (sum(table[name] for table in tables.values()) for name in ("changed", "rows"))
    kept = {name: file.kept for name, file in described.files.items()}
    lines = [
        [dtype, kind, whole[kind] / 1e6, part.get(kind, 0) / 1e6, f"{part.get(kind, 0) / whole[kind]:.1%}"]
        for kind in KINDS
    ]
    sums = sum(whole.values()), sum(part.values())
    lines.append(
        [
            dtype,
            f"all; {changed:,} of {rows:,} rows changed",
            *(size / 1e6 for size in sums),
            f"{sums[1] / sums[0]:.1%}",
        ]
    )
    return {"export": whole, "delta": part, "tables": tables, "files": kept}, lines


def main(options: Options) -> None:
    """Make the days, measure, print and write."""
    place = machine()
    results: dict[str, Any] = {}
    lines: list[list[object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        make_days(options, work)
        for dtype in DTYPES:
            results[dtype], found = measure(work, dtype)
            lines += found
    body = markdown_table(("tables", "part", "export, MB", "delta, MB", "share"), lines)
    name = "bounded" if options.bounded else "growing"
    write_results(options.out, "export_delta", name, {"machine": place, **results}, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
