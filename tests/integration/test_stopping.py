"""When training stops, and which step's model is then measured."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import EPOCH, evaluation, flat, lines, read, steps, train_here, write_data
from toy import write_toy

from recmtl import cli
from recmtl.schema import Dataset
from recmtl.training.checkpoint_folder import best_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="module")
def overfit(data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that gets worse after its best epoch."""
    run = tmp_path_factory.mktemp("runs") / "overfit"
    flags = {"embedding__lr": 0.5, "training__patience": 2, "training__max_epochs": 20, "checkpoint__keep": 1}
    train_here(data, run, **flags)
    return run


def test_training_stops_when_validation_no_longer_improves(overfit):
    results = read(overfit)
    val = [line["val/loss"] for line in lines(overfit) if "val/loss" in line]
    assert len(val) == results["epochs"] == results["best_epoch"] + 2 < 20
    assert min(val) == val[results["best_epoch"] - 1]


def test_the_newest_and_the_best_checkpoint_are_kept(overfit):
    results = read(overfit)
    assert steps(overfit) == [results["best_epoch"] * EPOCH, results["epochs"] * EPOCH]
    assert best_checkpoint(overfit).name == f"step-{results['best_epoch'] * EPOCH:09d}"


def test_the_best_epochs_model_is_tested(data, overfit, tmp_path):
    """A run that ends at that epoch tests the same model."""
    results = read(overfit)
    again = train_here(data, tmp_path / "run", embedding__lr=0.5, training__max_epochs=results["best_epoch"])
    assert again["best_epoch"] == results["best_epoch"]
    for task in ("click", "like"):
        assert flat(results["test"][task]) == pytest.approx(flat(again["test"][task]), rel=1e-6)


def test_evaluate_measures_the_best_epochs_model(data, overfit):
    for split in ("test", "val"):
        cli.evaluate([str(overfit), "--data", str(data), "--split", split])
        measured = read(overfit, evaluation(data, split))[split]
        for task, metrics in read(overfit)[split].items():
            assert flat(measured[task]) == pytest.approx(flat(metrics), rel=1e-9)


def test_a_worse_part_of_an_epoch_does_not_count_for_patience(data, overfit, tmp_path):
    """Training to a step after the best epoch, then on: as many epochs as in one go."""
    worse = EPOCH * read(overfit)["best_epoch"] + 5
    flags = {"embedding__lr": 0.5, "training__patience": 2, "training__max_epochs": 20, "checkpoint__keep": 1}
    for steps_more in (0, EPOCH):
        stopped = train_here(data, tmp_path / "run", **flags, training__max_steps=worse + steps_more)
        assert stopped["steps"] == worse + steps_more
    assert train_here(data, tmp_path / "run", **flags)["epochs"] == read(overfit)["epochs"]


PART = {"embedding__lr": 5.0, "training__patience": 2, "training__max_epochs": 20, "checkpoint__keep": 1}
"""With these the first epoch is the best, and parts of the first and of the second are better still."""


@pytest.fixture(scope="module")
def in_one_go(data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "one"
    train_here(data, run, **PART)
    assert (read(run)["best_epoch"], read(run)["epochs"]) == (1, 3)
    return run


@pytest.mark.parametrize("stop", [35, EPOCH + 5])
def test_a_better_part_of_an_epoch_is_tested_and_forgotten_when_the_run_goes_on(data, in_one_go, tmp_path, stop):
    run = tmp_path / "run"
    stopped = train_here(data, run, **PART, training__max_steps=stop)
    assert (stopped["steps"], stopped["best_epoch"]) == (stop, 1 + stop // EPOCH)
    assert best_checkpoint(run).name == f"step-{stop:09d}"
    assert sum(task["logloss"] for task in stopped["val"].values()) < min(
        line["val/loss"] for line in lines(in_one_go) if "val/loss" in line
    )
    # Killed before it wrote its results: the same command ends with the same ones.
    (run / "results.json").unlink()
    again = train_here(data, run, **PART, training__max_steps=stop)
    assert (again["test"], again["val"], again["best_epoch"]) == tuple(
        stopped[k] for k in ("test", "val", "best_epoch")
    )

    on, whole = train_here(data, run, **PART), read(in_one_go)
    for key in ("epochs", "best_epoch", "steps", "test", "val", "logloss_sum", "calibration_bins"):
        assert on[key] == whole[key], key
    assert steps(run) == steps(in_one_go)


def weigh(data: Path, folder: Path, click: float, like: float) -> Path:
    """The same rows, with other weights of the tasks."""
    shutil.copytree(data, folder)
    dataset = Dataset.load(folder)
    weights = {"click": click, "like": like}
    tasks = tuple(replace(task, weight=weights[task.name]) for task in dataset.tasks)
    replace(dataset, tasks=tasks).save(folder)
    return folder


@pytest.mark.parametrize("tasks", [(), ("like",)])
def test_the_recipes_weights_decide_which_epoch_is_best(data, tmp_path, tasks):
    """Click has no weight: it is measured, and has no say."""
    weighed = weigh(data, tmp_path / "data", 0.0, 2.5)
    results = train_here(weighed, tmp_path / "run", tasks=tasks, embedding__lr=0.5, training__max_epochs=4)
    logged = [line for line in lines(tmp_path / "run") if "loss" in line]
    for line in logged:
        assert line["loss"] == pytest.approx(2.5 * line["loss/like"])
        assert line["weight/like"] == 2.5
    val = [line for line in lines(tmp_path / "run") if "val/loss" in line]
    for line in val:
        assert line["val/loss"] == pytest.approx(2.5 * line["val/like/logloss"])
    like = [line["val/like/logloss"] for line in val]
    assert results["best_epoch"] == 1 + like.index(min(like))
    assert results["logloss_sum"] == pytest.approx(sum(task["logloss"] for task in results["test"].values()))
    assert set(results["test"]) == (set(tasks) or {"click", "like"})


@pytest.mark.parametrize(("tasks", "named"), [((), "click, like"), (("click",), "click")])
def test_without_any_weight_there_is_nothing_to_train(data, tmp_path, tasks, named):
    weighed = weigh(data, tmp_path / "data", 0.0, 0.0 if not tasks else 1.0)
    said = rf"^training.tasks: the recipe gives weight 0 to all tasks to train \({named}\); give one of them a weight"
    with pytest.raises(cli.UserError, match=said):
        train_here(weighed, tmp_path / "run", tasks=tasks)
    assert not (tmp_path / "run").exists()
    with pytest.raises(cli.UserError, match=said):
        cli.plan(["mmoe", "--data", str(weighed), *(("--tasks", *tasks) if tasks else ())])


def test_without_validation_and_test_splits_the_newest_step_is_the_best(tmp_path):
    write_toy(tmp_path / "data", {"train": 200, "val": 0, "test": 0}, extra_features=False)
    results = train_here(tmp_path / "data", tmp_path / "run", training__max_steps=5)
    assert (results["epochs"], results["best_epoch"], results["steps"]) == (1, 2, 5)
    assert (results["test"], results["logloss_sum"]) == ({}, None)
    assert best_checkpoint(tmp_path / "run").name == "step-000000005"


def test_without_a_validation_split_the_last_epoch_is_tested(tmp_path):
    write_toy(tmp_path / "data", {"train": 200, "val": 0, "test": 50}, extra_features=False)
    results = train_here(tmp_path / "data", tmp_path / "run", metrics__tensorboard=False)
    assert (results["epochs"], results["best_epoch"], results["val"]) == (2, 2, {})
    assert results["test"]["click"]["rows"] == 50
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_loss_that_is_no_number_stops_the_run(data, tmp_path):
    with pytest.raises(cli.UserError, match=r"the loss is nan at step \d+; lower dense.lr and embedding.lr"):
        train_here(data, tmp_path / "run", dense__optimizer="sgd", dense__lr=1e38, training__warmup_steps=0)


def test_a_last_step_that_breaks_the_model_stops_the_run(data, tmp_path):
    """Its own loss was still a number."""
    flags = {"dense__optimizer": "sgd", "dense__lr": 1e38, "training__warmup_steps": 0, "training__max_steps": 1}
    with pytest.raises(cli.UserError, match=r"the log loss on the val split is nan; lower dense.lr and embedding.lr"):
        train_here(data, tmp_path / "run", **flags)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert not (tmp_path / "run" / "results.json").exists()
