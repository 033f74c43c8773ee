"""How long a video is played, beside what becomes of it: a number as a task of a model of binary ones.

    pip install lightgbm scipy        # for the trees; without them their line is left out
    python benchmarks/watch_time.py ../shared/data/kuairand

Trains a preset on `kuairand` (click, long view, like) and on `kuairand_time` (the same and play time), the latter as a
duration and as a regression with each of its losses; and gradient boosting on the same features for play time alone.
Wanted: play time is predicted better than by the trees, and the binary tasks lose nothing. Start the command again and
it goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import table
import tomli_w
import tyro
from common import RESULTS, machine, markdown_table, write_results

from recmtl.config import tomllib
from recmtl.data.recipe import load_recipe
from recmtl.metrics.jackknife import average, difference, standard_error
from recmtl.metrics.xauc import xauc
from recmtl.schema import Dataset, Task

TASK = "play_time"
KINDS: dict[str, dict[str, Any]] = {
    "duration": {"kind": "duration"},
    "duration, weight 0.2": {"kind": "duration", "weight": 0.2},
    "squared": {"kind": "regression"},
    "huber": {"kind": "regression", "loss": "huber"},
    "log1p": {"kind": "regression", "transform": "log1p"},
}
"""Keys of the task by what the table calls it."""
Results = dict[str, Any]


@dataclass
class Options:
    """What to train."""

    raw: tyro.conf.Positional[Path]
    """The raw folder of KuaiRand."""
    preset: str = "mmoe"
    """The model."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """How play time is learned."""
    seeds: int = 3
    """Runs of each, with seeds 100, 101, …"""
    work: Path = table.WORK / "watch_time"
    """Folder for data and runs; what it holds already is not made again."""
    out: Path = RESULTS
    """Folder for the results."""


def prepared(options: Options, kind: str | None) -> Path:
    """Data with play time as a task of a kind, or without it."""
    data = options.work / (kind or "binary")
    if not data.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        recipe = options.work / f"{kind or 'binary'}.toml"
        keys = tomllib.loads(load_recipe("kuairand_time").toml)
        tasks = [task for task in keys["task"] if task["name"] != TASK]
        if kind is not None:
            tasks.append({"name": TASK, "label": "play_time_ms", **KINDS[kind]})
        recipe.write_text(tomli_w.dumps({**keys, "task": tasks}))
        table.recmtl("prepare", recipe, options.raw, data)
    return data


def train(options: Options, kind: str | None) -> list[Results]:
    """Results of every seed's run."""
    data, found = prepared(options, kind), []
    for seed in range(table.FIRST_SEED, table.FIRST_SEED + options.seeds):
        run = options.work / "runs" / f"{options.preset} {kind or 'binary'} {seed}"
        if not (run / "results.json").exists():
            table.recmtl("train", options.preset, "--data", data, "--run", run, "--training.seed", seed)
        found.append(json.loads((run / "results.json").read_text()))
    return found


def columns_of(data: Path, dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, F], ids and numbers, of lists the last id and the length; labels of play time [n]."""
    rows = pa.concat_tables([pq.read_table(path) for path in dataset.files(data, split)])
    found = []
    for feature in dataset.features:
        column = rows.column(feature.name).combine_chunks()
        if pa.types.is_list(column.type):
            ends, lengths = column.offsets.to_numpy()[1:], np.diff(column.offsets.to_numpy())
            values = np.append(column.values.to_numpy(), 0)
            found += [np.where(lengths > 0, values[ends - 1], 0), lengths]
        else:
            found.append(column.to_numpy())
    return np.stack(found, axis=1).astype(np.float64), rows.column(f"label_{TASK}").to_numpy().astype(np.float64)


def trees(options: Options) -> list[dict[str, float]]:
    """Metrics of gradient boosting with the squared and the absolute loss, stopped by the validation rows."""
    import lightgbm

    data = prepared(options, "duration")
    dataset = Dataset.load(data)
    (x, y), (x_val, y_val), (x_test, y_test) = (columns_of(data, dataset, split) for split in ("train", "val", "test"))
    found = []
    for objective in ("regression", "regression_l1"):
        settings = {"objective": objective, "learning_rate": 0.05, "num_leaves": 63, "min_data_in_leaf": 50}
        settings |= {"verbose": -1, "num_threads": 2, "seed": table.FIRST_SEED}
        booster = lightgbm.train(
            settings,
            lightgbm.Dataset(x, y),
            num_boost_round=2000,
            valid_sets=[lightgbm.Dataset(x_val, y_val)],
            callbacks=[lightgbm.early_stopping(50, verbose=False)],
        )
        p = booster.predict(x_test)
        error = p - y_test
        found.append(
            {
                "mae": np.abs(error).mean().item(),
                "rmse": np.sqrt(np.square(error).mean()).item(),
                "r2": 1 - np.square(error).sum().item() / np.square(y_test - y_test.mean()).sum().item(),
                "xauc": xauc(p.astype(np.float32), y_test.astype(np.float32)) or 0.0,
                "bias": p.mean().item() / y_test.mean().item(),
            }
        )
    return found


def line(label: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    """A line of play time's table, in seconds."""
    values = {name: [run[name] for run in runs] for name in ("mae", "rmse", "r2", "xauc", "bias")}
    seconds = (table.show([value / 1000 for value in values[name]], ".3f") for name in ("mae", "rmse"))
    return [label, *seconds, *(table.show(values[name], ".4f") for name in ("r2", "xauc", "bias"))]


def change(task: Task, runs: list[Results], base: list[Results]) -> str:
    """Of a binary task's AUC against the model without play time, with the error of the difference."""
    folds = [average([run["test"][task.name]["auc_folds"] for run in some]) for some in (runs, base)]
    aucs = [fmean(run["test"][task.name]["auc"] for run in some) for some in (runs, base)]
    return f"{aucs[0] - aucs[1]:+.4f} ± {standard_error(difference(*folds)):.4f}"


def main(options: Options) -> None:
    """Train, print and write."""
    place = machine()
    base = train(options, None)
    binary = Dataset.load(prepared(options, None)).tasks
    runs = {kind: train(options, kind) for kind in options.kinds}
    lines = [line(f"`{options.preset}`, {kind}", [run["test"][TASK] for run in found]) for kind, found in runs.items()]
    measured: dict[str, Any] = {"binary": list(map(table.slim, base))}
    measured |= {kind: list(map(table.slim, found)) for kind, found in runs.items()}
    if find_spec("lightgbm"):
        measured["trees"] = trees(options)
        labels = ("gradient boosting, squared", "gradient boosting, absolute")
        lines += [line(label, [found]) for label, found in zip(labels, measured["trees"], strict=True)]
    header = ("play time", "MAE s", "RMSE s", "R²", "XAUC", "mean over mean")
    changes = [[kind, *(change(task, found, base) for task in binary)] for kind, found in runs.items()]
    body = "\n\n".join(
        [
            markdown_table(header, lines),
            markdown_table(("with play time as", *(task.name for task in binary)), changes),
            f"{options.seeds} seeds; the second table is the change of the AUC against `{options.preset}` without play "
            "time, ± the standard error of the difference on the same test rows (jackknife over users).",
        ]
    )
    write_results(options.out, "watch_time", options.preset, {"machine": place, "runs": measured}, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
