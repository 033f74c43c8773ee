"""What half-precision tables cost in quality: presets trained with float32 and with float16 tables, seed by seed.

    python benchmarks/precision.py mmoe merrec_mmoe --events 1000000

Both train on synthetic MerRec, on the same rows in the same order from the same first weights. The last columns are the
mean difference over seeds, float16 less float32, with its deviation. Start the command again and it goes on where it
stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import table
import tyro
from common import RESULTS, machine, markdown_table, write_results

DTYPES = ("float32", "float16")
Results = dict[str, Any]


@dataclass
class Options:
    """What to train on how many events."""

    presets: tyro.conf.Positional[tuple[str, ...]] = ("mmoe", "merrec_mmoe")
    """Presets."""
    events: int = 1_000_000
    """Number of synthetic events."""
    seeds: int = 3
    """Runs of each, with seeds 100, 101, …"""
    overrides: str = ""
    """Further options of `recmtl train`: --overrides='--training.max_epochs 5'."""
    work: Path | None = None
    """Folder for data and runs; what it holds already is not made again. None: one in benchmarks/work."""
    out: Path = RESULTS
    """Folder for the results."""


def measures(runs: list[Results]) -> dict[str, Callable[[Results], float]]:
    """What is compared, by its name."""
    found: dict[str, Callable[[Results], float]] = {}
    for task in runs[0]["test"]:
        found[f"{task} AUC"] = lambda run, task=task: run["test"][task]["auc"]  # type: ignore[misc]
    return {**found, "log loss": lambda run: run["logloss_sum"], "epochs": lambda run: run["epochs"]}


def main(options: Options) -> None:
    """Train, print and write."""
    place = machine()
    work = options.work or table.WORK / f"table-merrec-{options.events}"
    work.mkdir(parents=True, exist_ok=True)
    rows = [table.Row(preset) for preset in options.presets]
    runs: dict[str, dict[table.Row, list[Results]]] = {}
    for dtype in DTYPES:
        chosen = f"--embedding.dtype {dtype} {options.overrides}".strip()
        train = table.Options("merrec", events=options.events, seeds=options.seeds, overrides=chosen)
        data = table.prepare(train, work)
        runs[dtype] = table.train(train, rows, data, work / "runs")
    lines = []
    for row in rows:
        both = [runs[dtype][row] for dtype in DTYPES]
        for name, of in measures(both[0]).items():
            values = [[of(run) for run in side] for side in both]
            change = [half - full for full, half in zip(*values, strict=True)]
            lines.append([row.label, name, *(table.show(side, ".4f") for side in values), table.show(change, "+.5f")])
    test_rows = json.loads((data / "dataset.json").read_text())["rows"]["test"]
    body = (
        markdown_table(("preset", "test", *DTYPES, "difference"), lines)
        + f"\n\nSeeds from {table.FIRST_SEED}, {options.seeds} a cell; {test_rows:,} test rows."
    )
    found = {dtype: {row.label: of_row for row, of_row in by_row.items()} for dtype, by_row in runs.items()}
    results = {"machine": place, "runs": found}
    write_results(options.out, "precision", "+".join(options.presets), results, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
