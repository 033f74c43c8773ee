"""Every model of the registry trains on two ranks through the command line, and goes on from its checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from runs import evaluation
from toy import write_toy

from recmtl.config import MODELS

FAST = ("aitm",)
STEPS, AN_EPOCH = 30, 24
OPTIONS = {"single_task": ("--training.tasks", "click")}
"""What a model needs besides its preset."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy folder; a like now has a parent, for the models that ask for an order."""
    folder = tmp_path_factory.mktemp("toy") / "data"
    dataset = write_toy(folder, {"train": 64 * AN_EPOCH, "val": 64, "test": 64})
    click, like = dataset.tasks
    replace(dataset, tasks=(click, replace(like, parent="click", relation="given_not"))).save(folder)
    return folder


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_trains_on_two_ranks(run_recmtl, tmp_path, data, name):
    run = tmp_path / "run"
    options = {
        "training.batch_size": 64,
        "training.device": "cpu",
        "dense.lr": 0.005,
        "metrics.every_steps": 1,
    }
    flags = [word for key, value in options.items() for word in (f"--{key}", value)]
    # The fast ones in one go, into the second epoch; the others stop after the first and go on.
    for steps in (STEPS,) if name in FAST else (AN_EPOCH, STEPS):
        ended = run_recmtl(
            *("train", name, "--data", data, "--run", run, *flags, *OPTIONS.get(name, ())),
            *("--training.max_steps", steps),
            ranks=2,
        )
        assert ended.returncode == 0, ended.stderr
        assert "WARN" not in ended.stderr.upper()

    assert sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir()) == [AN_EPOCH, STEPS]
    results = json.loads((run / "results.json").read_text())
    assert (results["model"], results["world_size"], results["steps"]) == (name, 2, STEPS)
    assert set(results["test"]) == ({"click"} if name == "single_task" else {"click", "like"})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == STEPS
    assert mean(losses[-5:]) < mean(losses[:5])


@pytest.mark.slow
def test_batch_normalisation_is_the_same_on_one_rank_and_on_two(run_recmtl, tmp_path):
    """Also where the last batch is short, and where a checkpoint is measured: it holds the running means."""
    data = tmp_path / "data"
    write_toy(data, {"train": 64 * AN_EPOCH + 5, "val": 70, "test": 64})
    results = []
    for ranks in (1, 2):
        run = tmp_path / f"{ranks}"
        options = ("--training.batch_size", 64, "--training.max_epochs", 1, "--metrics.every_steps", 1)
        ended = run_recmtl("train", "home", "--data", data, "--run", run, *options, ranks=ranks)
        assert ended.returncode == 0, ended.stderr
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        results.append(
            [
                *(line["loss"] for line in lines if "loss" in line),
                *(line["val/loss"] for line in lines if "val/loss" in line),
                json.loads((run / "results.json").read_text())["logloss_sum"],
            ]
        )
    assert len(results[0]) == AN_EPOCH + 1 + 2
    assert results[1] == pytest.approx(results[0], rel=1e-5)

    ended = run_recmtl("evaluate", tmp_path / "2", "--data", data)
    assert ended.returncode == 0, ended.stderr
    measured = json.loads((tmp_path / "2" / evaluation(data, "test")).read_text())["logloss_sum"]
    assert measured == pytest.approx(results[1][-1], rel=1e-6)
