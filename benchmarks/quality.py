"""Test AUC of presets on a dataset, mean and deviation over seeds: `python benchmarks/quality.py --help`.

python benchmarks/quality.py census --raw ../shared/data/census
python benchmarks/quality.py kuairand --raw ../shared/data/kuairand --seeds 3
python benchmarks/quality.py merrec --events 2000000 --seeds 1
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from recmtl.report import report


@dataclass
class Options:
    """What to train on what."""

    recipe: tyro.conf.Positional[str]
    """Recipe of the dataset."""
    raw: Path | None = None
    """Its raw folder; none: synthetic MerRec events."""
    events: int = 2_000_000
    """Number of synthetic events."""
    presets: tuple[str, ...] = ("mmoe",)
    """Presets to train."""
    seeds: int = 3
    """Runs of each, with seeds 100, 101, …"""
    work: Path | None = None
    """Folder for data and runs; none: a temporary one. A folder that holds data or runs already is gone on with."""
    overrides: str = ""
    """Further options of `recmtl train`, in one string."""


def recmtl(*arguments: object) -> None:
    """Run the command line in a process of its own."""
    subprocess.run([sys.executable, "-m", "recmtl", *map(str, arguments)], check=True)


def measure(options: Options, work: Path) -> None:
    """Prepare, train every preset with every seed, print the table."""
    raw, data = options.raw, work / "data"
    if raw is None:
        raw = work / "raw"
        if not raw.exists():
            recmtl("synth", "merrec", raw, "--events", options.events)
    if not data.exists():
        recmtl("prepare", options.recipe, raw, data)
    runs = []
    for preset in options.presets:
        for seed in range(100, 100 + options.seeds):
            run = work / "runs" / f"{preset}-{seed}"
            recmtl("train", preset, "--data", data, "--run", run, "--training.seed", seed, *options.overrides.split())
            runs.append(run)
    print(report(runs, work / "report"))


def main() -> None:
    """Entry point."""
    options = tyro.cli(Options, description=__doc__)
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
        measure(options, options.work)
        return
    with tempfile.TemporaryDirectory() as work:
        measure(options, Path(work))


if __name__ == "__main__":
    main()
