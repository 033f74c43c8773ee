"""Runs on toy data that log every step, and what they left."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jobs import words
from toy import write_toy

from recmtl import cli
from recmtl.schema import Dataset

TRAIN_ROWS, BATCH = 3000, 64
EPOCH = math.ceil(TRAIN_ROWS / BATCH)  # 47 steps
# Learning rates rise over the first checkpoints, so that resuming there must find its place in the rise.
FLAGS = {
    "training.batch_size": BATCH,
    "training.max_epochs": 2,
    "training.patience": 0,
    "training.warmup_steps": 30,
    "training.device": "cpu",
    "metrics.every_steps": 1,
    "checkpoint.every_steps": 20,
    "checkpoint.keep": 100,
}


def write_data(folder: Path) -> Path:
    """The data of these runs."""
    write_toy(folder, {"train": TRAIN_ROWS, "val": 400, "test": 501})
    return folder


def train_here(
    data: Path, run: Path, preset: str = "mmoe", tasks: tuple[str, ...] = (), **flags: Any
) -> dict[str, Any]:
    """`recmtl train` on one rank within this process."""
    flags = FLAGS | {key.replace("__", "."): value for key, value in flags.items()}
    chosen = ["--tasks", *tasks] if tasks else []
    cli.train([preset, "--data", str(data), "--run", str(run), *words(flags), *chosen])
    return read(run)


def read(run: Path, name: str = "results.json") -> dict[str, Any]:
    return json.loads((run / name).read_text())


def evaluation(data: Path, split: str) -> str:
    """Where a run folder holds what `recmtl evaluate` measured."""
    return f"evaluations/{Dataset.load(data).data_fingerprint}-{split}.json"


def flat(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of one task, every fold with rows by itself: `pytest.approx` knows no list in a dict, nor null."""
    folds = {f"auc_folds/{fold}": value for fold, value in enumerate(metrics["auc_folds"]) if value is not None}
    return {**{name: value for name, value in metrics.items() if name != "auc_folds"}, **folds}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """The training loss of every step; all steps must be there, once and in order."""
    logged = [line for line in lines(run) if "loss" in line]
    assert [line["step"] for line in logged] == list(range(1, len(logged) + 1))
    return [line["loss"] for line in logged]


def steps(run: Path) -> list[int]:
    """Of the checkpoints."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())
