"""What a model loses that sees a part of the negatives, and what an epoch then costs.

    python benchmarks/negatives.py

A synthetic funnel: users are shown items, some click, some of those buy. The same log is prepared as it is and with
`keep_negatives`, and the same preset is trained on both with several seeds. All test rows stay in both, so that AUC,
log loss and calibration compare row by row. Wanted: calibration within 2 % of 1, the AUC within two standard errors of
the difference, an epoch in a third of the time. Start the command again and it goes on where it stopped.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import table
import tyro
from common import RESULTS, machine, markdown_table, write_results

from recmtl.metrics.jackknife import average, difference, standard_error

TASKS = ("click", "buy")
RECIPE = """
sql = "select * from raw"
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "place"
[[task]]
name = "click"
label = "clicked"
[[task]]
name = "buy"
label = "bought"
parent = "click"
[split]
val = 0.1
test = 0.2
[sampling]
keep_negatives = {share}
"""
Results = dict[str, Any]


@dataclass
class Options:
    """What to train on what."""

    rows: int = 2_000_000
    """Impressions."""
    share: float = 0.1
    """Of the negatives to keep."""
    click_rate: float = 0.02
    """About how many impressions are clicked."""
    preset: str = "mmoe"
    """What to train."""
    epochs: int = 3
    """Passes over the training rows, at most."""
    batch_size: int = 1024
    """Rows of a batch of the whole log. Of the sampled one it is smaller, so that an epoch has about half as many steps
    with about twice as many positives each."""
    embedding_lr: float = 0.01
    """Learning rate of the tables."""
    seeds: int = 2
    """Runs of each, with seeds 100, 101, …"""
    work: Path = table.WORK / "negatives"
    """Folder for data and runs; what it holds already is not made again."""
    out: Path = RESULTS
    """Folder for the results."""


def write_log(folder: Path, options: Options) -> None:
    """Impressions whose clicks and purchases depend on the user's and the item's vectors and on the place."""
    rng = np.random.default_rng(0)
    users, items, places, width = 1_000, 500, 10, 4
    taste, kind = rng.normal(size=(users, width)), rng.normal(size=(items, width)) / width**0.5
    worth = rng.normal(size=(2, items)) * 0.6
    user = rng.integers(0, users, options.rows)
    item = np.minimum((rng.random(options.rows) ** 2 * items).astype(np.int64), items - 1)
    place = rng.integers(0, places, options.rows)
    match = (taste[user] * kind[item]).sum(1)
    # The mean of σ over a spread of about 1.3 is some 1.6 times σ of the mean where clicks are rare.
    level = np.log(options.click_rate / (1 - options.click_rate)) - 0.6
    click = rng.random(options.rows) < _sigmoid(level + match + worth[0][item] - 0.08 * (place - 4.5))
    buy = click & (rng.random(options.rows) < _sigmoid(-2 + 0.5 * match + worth[1][item]))
    columns = {"user": user, "item": item, "place": place}
    labels = {"clicked": click.astype(np.int8), "bought": buy.astype(np.int8)}
    folder.mkdir(parents=True)
    pq.write_table(pa.table({**columns, **labels}), folder / "log.parquet")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def measure(options: Options, share: float) -> list[Results]:
    """Results of every seed's run on data with a share of the negatives."""
    name = f"{share:g}"
    raw, data, recipe = options.work / "raw", options.work / f"data {name}", options.work / f"{name}" / "funnel.toml"
    if not raw.exists():
        write_log(raw, options)
    if not data.exists():
        recipe.parent.mkdir(exist_ok=True)
        recipe.write_text(RECIPE.format(share=float(share)))
        table.recmtl("prepare", recipe, raw, data)
    found = []
    for seed in range(table.FIRST_SEED, table.FIRST_SEED + options.seeds):
        run = options.work / "runs" / f"{options.preset} {name} {seed}"
        if not (run / "results.json").exists():
            rows = json.loads((data / "dataset.json").read_text())["rows"]["train"]
            every = rows / (options.rows * 0.7)
            batch_size = min(options.batch_size, 2 ** round(math.log2(2 * options.batch_size * every)))
            choices = {
                "--training.seed": seed,
                "--training.max_epochs": options.epochs,
                "--training.batch_size": batch_size,
                "--embedding.lr": options.embedding_lr,
            }
            words = [word for pair in choices.items() for word in pair]
            table.recmtl("train", options.preset, "--data", data, "--run", run, *words)
        found.append(
            {
                **json.loads((run / "results.json").read_text()),
                "rows": json.loads((data / "dataset.json").read_text())["rows"],
            }
        )
    return found


def main(options: Options) -> None:
    """Train, print and write."""
    place = machine()
    whole, some = measure(options, 1), measure(options, options.share)
    lines = []
    for task in TASKS:
        folds = [average([run["test"][task]["auc_folds"] for run in runs]) for runs in (some, whole)]
        error = standard_error(difference(*folds))
        aucs = [fmean(run["test"][task]["auc"] for run in runs) for runs in (whole, some)]
        calibrations = [fmean(run["test"][task]["calibration"] for run in runs) for runs in (whole, some)]
        losses = [fmean(run["test"][task]["logloss"] for run in runs) for runs in (whole, some)]
        change = f"{aucs[1] - aucs[0]:+.4f} ± {error:.4f}"
        positives = f"{whole[0]['test'][task]['positives']:,}"
        shown = (f"{value:.4f}" for value in (*aucs, *losses))
        lines.append([task, positives, *shown, change, *(f"{value:.3f}" for value in calibrations)])
    header = ["task", "test positives", "AUC, all", "AUC, sampled", "log loss, all", "log loss, sampled"]
    header += ["AUC change", "calibration, all", "calibration, sampled"]
    epoch = [fmean(run["seconds"]["train"] / run["epochs"] for run in runs) for runs in (whole, some)]
    rows = [runs[0]["rows"]["train"] for runs in (whole, some)]
    body = (
        f"{markdown_table(header, lines)}\n\n"
        f"{rows[1]:,} of {rows[0]:,} training rows are kept ({rows[1] / rows[0]:.3f}); an epoch takes {epoch[1]:.1f} s "
        f"in place of {epoch[0]:.1f} s ({epoch[1] / epoch[0]:.3f}). Means over {options.seeds} seeds; ± is the "
        "standard error of the difference on the same test rows (jackknife)."
    )
    runs = {"all": list(map(table.slim, whole)), "sampled": list(map(table.slim, some))}
    write_results(options.out, "negatives", options.preset, {"machine": place, "runs": runs}, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
