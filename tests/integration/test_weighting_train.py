"""Task weightings through the command line: alike on one rank and two, stopped and resumed, and what they log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import words
from toy import write_toy

from recmtl import cli
from recmtl.errors import UserError
from recmtl.objectives.weighting import METHODS

EPOCH, EPOCHS = 24, 4  # steps; from the third epoch on dwa has something to go by
MODEL = "shared_bottom"
# SGD, and Adagrad with an eps far above its accumulator: others hide a gradient that is off by a factor.
FLAGS = {
    "training.batch_size": 64,
    "training.max_epochs": EPOCHS,
    "training.patience": 0,
    "training.device": "cpu",
    "metrics.every_steps": 1,
    "metrics.tensorboard": False,
    "checkpoint.every_steps": 10,
    "checkpoint.keep": 100,
    "dense.optimizer": "sgd",
    "dense.lr": 0.3,
    "embedding.optimizer": "adagrad",
    "embedding.lr": 2,
    "embedding.eps": 0.1,
    "weighting.temperature": 0.1,
}
LEARNED = [method for method in METHODS if method != "fixed"]


def logged(run: Path, kind: str) -> list[list[float]]:
    """`kind`/click and `kind`/like of every step."""
    lines = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [[line[f"{kind}/{task}"] for task in ("click", "like")] for line in lines]


def assert_alike(one: Path, other: Path) -> None:
    for kind in ("loss", "weight"):
        a, b = logged(one, kind), logged(other, kind)
        assert len(a) == len(b) == EPOCH * EPOCHS
        for x, y in zip(a, b, strict=True):
            assert x == pytest.approx(y, rel=1e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy(folder, {"train": 64 * EPOCH, "val": 64, "test": 64})
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run of every method on one rank."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        train(data, folder / method, method)
    return {method: folder / method for method in METHODS}


def train(data: Path, run: Path, method: str, model: str = MODEL, **flags: Any) -> None:
    """`recmtl train` on one rank within this process."""
    flags = {key.replace("__", "."): value for key, value in flags.items()}
    cli.train([model, "--data", str(data), "--run", str(run), "--weighting.method", method, *words({**FLAGS, **flags})])


FAST = ("pcgrad", 0)
STARTS = [(method, step) for method in LEARNED for step in (0, 2 * EPOCH + 2)]


@pytest.mark.parametrize(
    ("method", "step"), [start if start == FAST else pytest.param(*start, marks=pytest.mark.slow) for start in STARTS]
)
def test_two_ranks_train_as_one(run_recmtl, data, runs, tmp_path, method, step):
    """From the first step, or from the checkpoint of one rank in the third epoch."""
    run = tmp_path / "run"
    if step:
        shutil.copytree(runs[method], run)
        (run / "results.json").unlink()
        for path in (run / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        assert (run / "checkpoints" / f"step-{step:09d}").exists()
    command = ("train", MODEL, "--data", data, "--run", run, "--weighting.method", method, *words(FLAGS))
    ended = run_recmtl(*command, ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert_alike(runs[method], run)


@pytest.mark.parametrize("method", LEARNED)
def test_stopping_in_an_epoch_and_going_on_changes_nothing(data, runs, tmp_path, method):
    for steps in (2 * EPOCH + 5, 0):
        train(data, tmp_path / "run", method, training__max_steps=steps)
    assert_alike(runs[method], tmp_path / "run")


def test_every_method_trains_in_its_own_way(runs):
    fixed = logged(runs["fixed"], "loss")
    assert logged(runs["fixed"], "weight") == [[1, 1]] * len(fixed)
    for method in LEARNED:
        losses, weights = logged(runs[method], "loss"), logged(runs[method], "weight")
        assert losses[0] == pytest.approx(fixed[0], rel=1e-6)  # reported losses are not weighted
        assert losses[-1] != pytest.approx(fixed[-1], rel=1e-4)
        assert sum(map(sum, losses[-5:])) < sum(map(sum, losses[:5]))
        assert weights[-1] != pytest.approx([1, 1], rel=1e-3) or method == "pcgrad"
    for method in ("dwa", "gradnorm"):
        assert [sum(pair) for pair in logged(runs[method], "weight")] == pytest.approx([2] * len(fixed))
    assert logged(runs["dwa"], "weight")[: 2 * EPOCH] == [[1, 1]] * (2 * EPOCH)
    # PCGrad adds to a gradient what another task's took away from it.
    assert all(weight >= 1 for pair in logged(runs["pcgrad"], "weight") for weight in pair)
    assert any(weight > 1.01 for pair in logged(runs["pcgrad"], "weight") for weight in pair)


@pytest.mark.parametrize("method", LEARNED)
def test_a_single_task_trains_with_every_method(data, tmp_path, method):
    train(data, tmp_path / "run", method, "single_task", training__tasks="like", training__max_epochs=1)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["test"]) == {"like"}


def test_a_run_keeps_its_method(data, runs):
    with pytest.raises(UserError, match=r"the run has weighting.method gradnorm, not dwa; go on with that"):
        train(data, runs["gradnorm"], "dwa")
