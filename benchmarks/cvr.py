"""Conversions after a click, where what drives clicks drives conversions: which model is nearest to the truth?

    python benchmarks/cvr.py

A log of impressions is drawn from known probabilities. With z the affinity of user and item, q what the item is worth,
r its price and s what the user spends, all of them properties of ids that the models see,

    logit p(click) = CLICK + 1.2 z + 0.5 q + γ c,
    logit p(buy if clicked) = BUY + 1.2 z + 0.5 q − 0.7 r + 0.7 s + γ c.

c ~ N(0, 1) is drawn for each impression and is in no column: with γ = 0 all that drives both can be learned, with γ > 0
a part is hidden, which no method can undo. The recipe's conversion label is `case when click = 1 then buy end`: null
without a click. Models are trained on the first days and score the last ones with `recmtl predict`. Their p(buy) is
compared with the mean over c of p(buy if clicked) over *all* impressions there, clicked or not: AUC against a draw of
what would have been bought, and mean absolute error of the probability. Start the command again and it goes on where
it stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import table
import tyro
from common import RESULTS, machine, markdown_table, write_results

from recmtl import cli
from recmtl.metrics.xauc import xauc

USERS, ITEMS, CATEGORIES, FACTORS = 400, 200, 10, 2
CLICK, BUY = -3.0, -2.0
DAYS, TEST = 10, 0.2
NODES = 20
"""Nodes of the quadrature over c."""
MODELS: dict[str, tuple[str, ...]] = {
    "single_task, clicked rows": ("single_task", "--training.tasks", "buy"),
    "mmoe, clicked rows": ("mmoe",),
    "esmm": ("esmm",),
    "escm2, ips, λ 1": ("escm2", "--model.regularizer", "ips", "--model.counterfactual", "1"),
    "escm2, ips, λ 0.1": ("escm2", "--model.regularizer", "ips", "--model.counterfactual", "0.1"),
    "escm2, dr, λ 1": ("escm2", "--model.regularizer", "dr", "--model.counterfactual", "1"),
    "escm2, dr, λ 0.1": ("escm2", "--model.regularizer", "dr", "--model.counterfactual", "0.1"),
}
"""What is compared: a preset and options of `recmtl train`."""
RECIPE = f"""
name = "funnel"
description = "Impressions, clicks and what is bought after a click"
sql = "select *, case when click = 1 then buy end as bought_if_clicked from raw"

[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "category"
[[feature]]
name = "price"
kind = "numeric"

[[task]]
name = "click"
label = "click"
[[task]]
name = "buy"
label = "bought_if_clicked"
parent = "click"

[split]
by = "time"
column = "ts"
val = 0.1
test = {TEST}
"""
Results = dict[str, Any]


@dataclass
class Options:
    """How much, how often and how confounded."""

    impressions: int = 300_000
    """Rows of the log."""
    hidden: tuple[float, ...] = (0.0, 1.0)
    """γ: how strongly what no column holds drives clicks and conversions alike."""
    seeds: int = 5
    """Logs and runs of each model, with seeds 0, 1, …"""
    overrides: str = "--training.patience 4"
    """Further options of `recmtl train`. With few conversions to validate on, the default patience of one epoch would
    stop some runs by chance."""
    work: Path = table.WORK / "cvr"
    """Folder for data and runs; what it holds already is not made again."""
    out: Path = RESULTS
    """Folder for the results."""


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−z)."""
    return 1 / (1 + np.exp(-z))


def draw(impressions: int, gamma: float, seed: int) -> pa.Table:
    """The log in the order of time, with the true probability of `buy` if clicked, and a draw of it in every row."""
    rng = np.random.default_rng(seed)
    category = rng.integers(0, CATEGORIES, ITEMS)
    centres = rng.normal(size=(CATEGORIES, FACTORS))
    factors = np.sqrt(0.7) * centres[category] + np.sqrt(0.3) * rng.normal(size=(ITEMS, FACTORS))
    tastes = rng.normal(size=(USERS, FACTORS)) / np.sqrt(FACTORS)
    worth, price, spends = rng.normal(size=ITEMS), rng.normal(size=ITEMS), rng.normal(size=USERS)

    user, item = rng.integers(0, USERS, impressions), rng.integers(0, ITEMS, impressions)
    both = 1.2 * (tastes[user] * factors[item]).sum(1) + 0.5 * worth[item]
    after = BUY + both - 0.7 * price[item] + 0.7 * spends[user]
    hidden = gamma * rng.normal(size=impressions)
    click = rng.random(impressions) < sigmoid(CLICK + both + hidden)
    would_buy = rng.random(impressions) < sigmoid(after + hidden)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    true_buy = sigmoid(after[:, None] + gamma * nodes) @ (weights / weights.sum())
    microseconds = np.sort(rng.choice(DAYS * 86_400_000, impressions, replace=False)) * 1000
    return pa.table(
        {
            "user": user,
            "item": item,
            "category": category[item],
            "price": price[item],
            "ts": pa.array(microseconds).cast(pa.timestamp("us")),
            "click": click.astype(np.int8),
            "buy": (click & would_buy).astype(np.int8),
            "would_buy": would_buy.astype(np.int8),
            "true_buy": true_buy,
        }
    )


def measure(options: Options, gamma: float, seed: int, model: str) -> Results:
    """Train one model on one log, score its last days, compare with the truth."""
    folder = options.work / f"{options.impressions}, {gamma:g} hidden, seed {seed}"
    raw, data, recipe = folder / "raw", folder / "data", folder / "funnel.toml"
    name = model + options.overrides.replace("--", ", ")
    run, predictions = folder / "runs" / name, folder / "predictions" / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (raw / "log.parquet").exists():
        raw.mkdir(exist_ok=True)
        pq.write_table(draw(options.impressions, gamma, seed), raw / "log.parquet")
    if not data.exists():
        recipe.write_text(RECIPE)
        cli.prepare([str(recipe), str(raw), str(data)])
    if not (run / "results.json").exists():
        preset, *words = MODELS[model]
        words += ["--training.seed", str(table.FIRST_SEED + seed), *options.overrides.split()]
        cli.train([preset, "--data", str(data), "--run", str(run), *words])
    log = pq.read_table(raw / "log.parquet")
    first = round((1 - TEST) * log.num_rows)
    if not predictions.exists():
        since = str(log["ts"][first].as_py())
        cli.predict([str(run), str(raw), str(predictions), "--since", since, "--keep", "ts"])
    found = pq.read_table(predictions).sort_by("ts")
    test = log.slice(first)
    assert found["ts"].equals(test["ts"]), "the predictions are of other rows"
    results = json.loads((run / "results.json").read_text())
    clicked = test["click"].to_numpy() == 1
    p, truth, would_buy = (column.to_numpy() for column in (found["p_buy"], test["true_buy"], test["would_buy"]))
    would_buy = would_buy == 1
    return {
        "rows": len(p),
        "clicks": int(clicked.sum()),
        "mean_true": {"all": float(truth.mean()), "clicked": float(truth[clicked].mean())},
        "auc": xauc(p, would_buy),
        "oracle_auc": xauc(truth, would_buy),
        "error": float(np.abs(p - truth).mean()),
        "error_clicked": float(np.abs(p - truth)[clicked].mean()),
        "ratio": float(p.mean() / truth.mean()),
        "steps": results["steps"],
    }


def main(options: Options) -> None:
    """Train, print and write."""
    place = machine()
    lines, notes, found = [], [], {}
    for gamma in options.hidden:
        seeds = range(options.seeds)
        by_model = {name: [measure(options, gamma, seed, name) for seed in seeds] for name in MODELS}
        oracle = next(iter(by_model.values()))
        lines.append([f"{gamma:g}", "oracle", table.show([run["oracle_auc"] for run in oracle], ".4f"), "0", "0", "1"])
        for name, runs in by_model.items():
            cells = [table.show([run[key] for run in runs], ".4f") for key in ("auc", "error", "error_clicked")]
            lines.append([f"{gamma:g}", name, *cells, table.show([run["ratio"] for run in runs], ".3f")])
        first, means = oracle[0], oracle[0]["mean_true"]
        notes.append(
            f"γ = {gamma:g}, seed 0: {first['clicks']:,} of {first['rows']:,} test impressions are clicked; the true "
            f"probability is {means['clicked']:.3f} in those on average and {means['all']:.3f} in all."
        )
        found[f"{gamma:g}"] = by_model
    header = ("γ", "model", "AUC", "mean absolute error", "in clicked rows", "mean p / mean truth")
    sizes = f"{options.impressions:,} impressions, {options.seeds} seeds (each its own log), ± deviation over them."
    body = "\n\n".join([markdown_table(header, lines), sizes, "\n".join(f"- {note}" for note in notes)])
    write_results(options.out, "cvr", f"{options.impressions}", {"machine": place, "results": found}, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
