"""Data that are legal and unusual train, are planned and measured: no tables, tiny ones, a single row or class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from jobs import words
from odd import write_odd
from runs import FLAGS, evaluation, losses, read, steps, train_here

from recmtl import cli
from recmtl.config import MODELS

FAST = ("stem", "pepnet")
ODD: dict[str, dict[str, Any]] = {
    "numeric features alone": {"kinds": ["numeric"] * 3},
    "list features alone": {"kinds": ["list", "list"]},
    "one task": {"kinds": ["categorical", "numeric"], "weights": {"click": 1.0}},
    "tables of one row": {"kinds": ["categorical", "list"], "table_rows": 1},
    "one row": {"kinds": ["categorical", "numeric"], "rows": {"train": 1, "val": 1, "test": 1}},
    "no rows to measure": {"kinds": ["categorical"], "rows": {"train": 100, "val": 0, "test": 0}},
    "fewer rows than streams": {"kinds": ["categorical"], "rows": {"train": 7, "val": 2, "test": 3}},
    "negatives alone": {"kinds": ["categorical", "numeric"], "label": 0},
    "positives alone": {"kinds": ["categorical"], "label": 1},
}


@pytest.mark.parametrize("case", ODD)
def test_odd_data_train_and_are_measured(tmp_path, case):
    data, run = tmp_path / "data", tmp_path / "run"
    dataset = write_odd(data, **ODD[case])
    results = train_here(data, run)
    assert results["epochs"] == 2
    assert all(math.isfinite(loss) for loss in losses(run))
    for split in ("val", "test"):
        for task in results[split].values():
            assert math.isfinite(task["logloss"])
            assert task["rows"] == dataset.rows[split]
    cli.evaluate([str(run), "--data", str(data), "--split", "train"])
    for task in read(run, evaluation(data, "train"))["train"].values():
        assert task["rows"] == dataset.rows["train"]
        assert (task["auc"] is None) == (ODD[case].get("label") is not None or dataset.rows["train"] == 1)


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_odd_data_are_planned(tmp_path, capsys, case, device, world_size):
    dataset = write_odd(tmp_path / "data", **ODD[case])
    cli.plan(["mmoe", "--data", str(tmp_path / "data"), "--world_size", str(world_size), "--device", device])
    shown = capsys.readouterr().out
    assert all(table.name in shown for table in dataset.tables)
    assert f"Ranks: {world_size} x 80.000 GiB ({device})" in shown
    assert "nan" not in shown


@pytest.mark.parametrize("flags", [{"training__batch_size": 2**31 - 1}, {"reader__streams": 2**31 - 1}])
def test_no_batch_takes_more_memory_than_all_rows(tmp_path, flags):
    write_odd(tmp_path / "data", ["categorical", "list", "numeric"])
    steps = {"training__batch_size": 1000} | flags
    results = train_here(tmp_path / "data", tmp_path / "run", **steps)
    train_here(tmp_path / "data", tmp_path / "other", training__batch_size=300)
    assert results["steps"] == 2
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "other"), rel=1e-5)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "data"
    write_odd(folder, ["numeric"] * 3)
    return folder


def test_numbers_alone_train_alike_on_two_ranks_and_in_micro_batches(numbers, run_recmtl, tmp_path):
    """Micro-batches on two ranks, stopped and resumed, against one rank in one go."""
    train_here(numbers, tmp_path / "one")
    options = words(FLAGS | {"training.micro_batch_size": 16})
    for stop in (("--training.max_steps", 5), ()):
        ended = run_recmtl("train", "mmoe", "--data", numbers, "--run", tmp_path / "two", *options, *stop, ranks=2)
        assert ended.returncode == 0, ended.stderr
        assert "WARN" not in ended.stderr.upper()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert read(tmp_path / "two", "plan.json")["shards"] == []
    assert steps(tmp_path / "two")[-1] == 10
    assert read(tmp_path / "two")["test"]["click"]["auc"] == pytest.approx(
        read(tmp_path / "one")["test"]["click"]["auc"], rel=1e-3
    )


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_every_model_trains_on_numbers_alone(numbers, tmp_path, name):
    tasks = ("click",) if name == "single_task" else ()
    train_here(numbers, tmp_path / "run", name, tasks, training__max_steps=5, training__micro_batch_size=0)
    assert len(losses(tmp_path / "run")) == 5


def test_gradients_of_embeddings_need_embeddings(numbers, tmp_path):
    with pytest.raises(cli.UserError, match=r"^weighting.method: gradnorm balances gradients of embeddings, and all"):
        train_here(numbers, tmp_path / "run", weighting__method="gradnorm")
    assert not (tmp_path / "run").exists()
