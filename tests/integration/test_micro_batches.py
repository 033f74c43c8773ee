"""Micro-batches through the command line: the run of whole batches, on one rank and two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from histories import write_data
from jobs import words
from runs import flat
from toy import write_toy

from recmtl import cli

BATCH, STEPS = 64, 20
FLAGS = {
    "training.batch_size": BATCH,
    "training.max_epochs": 1,
    "training.device": "cpu",
    "metrics.every_steps": 1,
    "metrics.tensorboard": False,
    # SGD does not hide a gradient that is off by a factor.
    "dense.optimizer": "sgd",
    "dense.lr": 0.1,
    "embedding.eps": 0.1,
}
OF_HISTORIES = FLAGS | {"sequence.encoder": "transformer", "sequence.layers": 2, "embedding.weight_decay": 0.01}


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    # The last step has few rows: fewer than a micro-batch on a rank.
    write_toy(folder, {"train": BATCH * (STEPS - 1) + 9, "val": 50, "test": 50})
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    cli.train(["stem", "--data", str(data), "--run", str(run), *words(FLAGS)])
    return run


@pytest.mark.parametrize(("ranks", "size"), [(1, 24), (2, 10)])
def test_a_run_in_micro_batches_is_the_run_of_whole_batches(data, whole, run_recmtl, tmp_path, ranks, size):
    flags = words({**FLAGS, "training.micro_batch_size": size})
    ended = run_recmtl("train", "stem", "--data", data, "--run", tmp_path / "run", *flags, ranks=ranks)
    assert ended.returncode == 0, ended.stderr
    assert len(losses(whole)) == STEPS
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-4)
    wanted, found = (json.loads((run / "results.json").read_text())["test"] for run in (whole, tmp_path / "run"))
    for task in wanted:
        assert flat(found[task]) == pytest.approx(flat(wanted[task]), rel=1e-4)


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data with histories, and a run of whole batches on them."""
    folder = tmp_path_factory.mktemp("histories")
    data = write_data(folder, rows=800)
    cli.train(["mmoe", "--data", str(data), "--run", str(folder / "run"), *words(OF_HISTORIES)])
    return data, folder / "run"


@pytest.mark.parametrize(("ranks", "size"), [(1, 24), (2, 10)])
def test_histories_in_micro_batches_are_those_of_whole_batches(histories, run_recmtl, tmp_path, ranks, size):
    data, whole = histories
    flags = words({**OF_HISTORIES, "training.micro_batch_size": size})
    ended = run_recmtl("train", "mmoe", "--data", data, "--run", tmp_path / "run", *flags, ranks=ranks)
    assert ended.returncode == 0, ended.stderr
    assert len(losses(whole)) > 5
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-4)


def test_a_weighting_that_needs_the_whole_batch_is_one_line(data, run_recmtl, tmp_path):
    flags = words({**FLAGS, "training.micro_batch_size": 16, "weighting.method": "pcgrad"})
    ended = run_recmtl("train", "mmoe", "--data", data, "--run", tmp_path / "run", *flags)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "training.micro_batch_size: 0 with weighting.method pcgrad, not 16" in ended.stderr
    assert not (tmp_path / "run").exists()
