"""SIGKILL of a rank, twenty times in a row; other numbers of ranks; several nodes. Minutes long."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, last_step, running, standalone, weights, words
from toy import write_toy

pytestmark = pytest.mark.slow

KILLS, STEPS = 20, 1000
FLAGS = {
    "training.batch_size": 64,
    "training.max_epochs": 1000,
    "training.max_steps": STEPS,
    "training.patience": 0,
    "training.device": "cpu",
    "model.dropout": 0.1,
    "metrics.every_steps": 1,
    "metrics.tensorboard": False,
    "checkpoint.every_steps": 10,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy(folder, {"train": 3000, "val": 400, "test": 501})
    return folder


def command(data: Path, run: Path, **flags: Any) -> list[object]:
    flags = FLAGS | {key.replace("__", "."): value for key, value in flags.items()}
    return ["train", "mmoe", "--data", data, "--run", run, *words(flags)]


def finish(*args: object, **options: Any) -> Job:
    with running(*args, **options) as job:
        assert job.end() == 0, job.stderr
        return job


def curve(run: Path) -> list[dict[str, float]]:
    """Every line of metrics.jsonl, without what the clock tells."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]


def results(run: Path) -> dict[str, Any]:
    found = json.loads((run / "results.json").read_text())
    return {key: found[key] for key in ("epochs", "best_epoch", "steps", "test", "val", "logloss_sum")}


def test_twenty_kills_in_a_row_change_no_bit(data, tmp_path):
    """Of one rank or the other, at a random step, in a checkpoint's write, or while the ranks start."""
    finish(*command(data, tmp_path / "undisturbed"), launcher=standalone(2))
    run, rng = tmp_path / "killed", random.Random(0)
    checkpoints = run / "checkpoints"
    # Each third of the kills is of one kind; those at steps and in writes are spread over the run.
    points = sorted(rng.sample(range(1, STEPS - 100), KILLS))
    kinds = rng.sample(["step", "write", "start"] * 7, KILLS)
    with running(*command(data, run), launcher=standalone(2, KILLS)) as job:
        for number, (point, kind) in enumerate(zip(points, kinds, strict=True)):
            ranks = job.wait_for(lambda number=number: len(found := job.ranks(number)) == 2 and found)
            if kind == "start":
                time.sleep(rng.uniform(0, 8))
            else:
                job.wait_for(lambda point=point: last_step(run) >= point)
            if kind == "write":
                job.wait_for(lambda: list(checkpoints.glob(".step-*.tmp")), pause=0.0005)
                time.sleep(rng.uniform(0, 0.03))
            unfinished = [path.name for path in checkpoints.glob(".step-*")]
            rank = rng.randrange(2)
            ranks[rank].kill()
            print(f"{number + 1:2} {kind:5} rank {rank} at step {last_step(run)} {unfinished}", flush=True)
        assert job.end() == 0, job.stderr
    assert "Traceback" not in job.stderr
    assert curve(run) == curve(tmp_path / "undisturbed")
    assert results(run) == results(tmp_path / "undisturbed")
    last = f"checkpoints/step-{STEPS:09d}"
    assert weights(run / last) == weights(tmp_path / "undisturbed" / last)
