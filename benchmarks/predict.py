"""What scoring new raw files costs beside measuring prepared ones: time, memory and rows per second.

    python benchmarks/predict.py --events 2000000
    python benchmarks/predict.py --events 20000000 --memory-limit 2GB --export-only

Trains a preset on synthetic MerRec, then evaluates it on all prepared rows and predicts the same events from the raw
files, with the run and with its export. Every command is a process of its own, its start included; predicting runs the
recipe's query and the encoder as well, which evaluating found done.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import tyro
from common import RESULTS, machine, markdown_table, write_results
from usage import Usage, usage

TRAINING_EVENTS = 300_000
"""The model is trained on few of the events: how good it is does not matter here."""


@dataclass
class Options:
    """How much to score."""

    events: int = 2_000_000
    """Number of synthetic events to score."""
    preset: str = "mmoe"
    """Preset to train."""
    memory_limit: str = "4GB"
    """Of `recmtl predict`."""
    export_only: bool = False
    """Predict with the export alone, and evaluate nothing: for numbers of events whose preparation would take long."""
    work: Path | None = None
    """Folder for data and runs; None: a temporary one."""
    out: Path = RESULTS
    """Folder for the results."""


def recmtl(*words: object) -> Usage:
    """Run a command of recmtl."""
    return usage(sys.executable, "-m", "recmtl", *words)


def measure(options: Options, work: Path) -> dict[str, tuple[int, Usage]]:
    """Rows that came out and what it took, by command."""
    events = TRAINING_EVENTS if options.export_only else options.events
    recmtl("synth", "merrec", work / "raw", "--events", events)
    recmtl("prepare", "merrec", work / "raw", work / "data")
    steps = ("--training.max_epochs", 1, "--training.max_steps", 200)
    recmtl("train", options.preset, "--data", work / "data", "--run", work / "run", *steps)
    recmtl("export", work / "run", work / "export")
    if options.export_only:
        recmtl("synth", "merrec", work / "new", "--events", options.events, "--seed", 1)
    found = {}
    raw = work / ("new" if options.export_only else "raw")
    models = {"export": work / "export"} if options.export_only else {"run": work / "run", "export": work / "export"}
    for name, model in models.items():
        out = work / f"predicted by {name}"
        limits = ("--keep", "user_id,product_id", "--memory-limit", options.memory_limit)
        used = recmtl("predict", model, raw, out, *limits)
        rows = sum(pq.read_metadata(path).num_rows for path in out.glob("*.parquet"))
        found[f"predict, {name}"] = (rows, used)
    if not options.export_only:
        used = recmtl("evaluate", work / "run", "--data", work / "data", "--split", "all")
        found["evaluate"] = (rows, used)
    return found


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        found = measure(options, work)
    lines = [
        (
            name,
            rows,
            used.seconds,
            used.cpu_seconds,
            rows / used.seconds,
            rows / used.cpu_seconds,
            used.peak_bytes / 1e9,
        )
        for name, (rows, used) in found.items()
    ]
    header = ("command", "rows", "s", "CPU s", "rows/s", "rows a CPU second", "peak GB")
    results = {"machine": place, **{name: {"rows": rows, **vars(used)} for name, (rows, used) in found.items()}}
    name = f"{options.preset}-{options.events / 1e6:g}m"
    write_results(options.out, "predict", name, results, markdown_table(header, lines))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
