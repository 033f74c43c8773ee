"""Crosses, brakes on overfitting, schedules and validations within an epoch, through the command line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from histories import write_data as write_histories
from jobs import weights, words
from runs import EPOCH, FLAGS, flat, lines, losses, read, steps, train_here, write_data
from started import tensors
from toy import write_toy
from trained import evaluated, train
from trained import write_data as write_kinds

from recmtl import cli
from recmtl.config import InteractionConfig, load_config
from recmtl.distributed.oom import MemoryEstimate
from recmtl.distributed.plan import GIB, Cluster
from recmtl.errors import UserError
from recmtl.models.embeddings import table_of
from recmtl.runtime.private_api import ShardedTensor
from recmtl.runtime.storage import read_json
from recmtl.schema import Dataset
from recmtl.training.checkpoint_folder import best_checkpoint, checkpoint_path
from recmtl.training.sharded import ShardedModel

ALL = {
    "interaction__kind": "dcn",
    "interaction__rank": 4,
    "interaction__normalization": "batch",
    "embedding__weight_decay": 0.01,
    "embedding__reinitialize": True,
    "training__schedule": "cosine",
    "training__validate_every_steps": 15,
    "dense__weight_decay": 0.001,
    "metrics__tensorboard": False,
}
"""All that does not draw at random, so that it is the same on any number of ranks."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("toy") / "data")


def as_killed_after(run: Path, step: int, to: Path) -> Path:
    """What the disk would hold had a run been killed before its next checkpoint after `step`."""
    shutil.copytree(run, to)
    (to / "results.json").unlink()
    for later in steps(to):
        if later > step:
            shutil.rmtree(checkpoint_path(to / "checkpoints", later))
    assert steps(to)[-1] == step
    return to


def validations(run: Path) -> list[int]:
    return [line["step"] for line in lines(run) if "val/loss" in line]


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "one"
    train_here(data, run, preset="stem", **ALL)
    return run


def test_two_ranks_train_as_one(data, one, run_recmtl, tmp_path):
    flags = FLAGS | {key.replace("__", "."): value for key, value in ALL.items()}
    ended = run_recmtl("train", "stem", "--data", data, "--run", tmp_path / "two", *words(flags), ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-4)
    assert validations(tmp_path / "two") == validations(one)
    for split in ("val", "test"):
        for task, metrics in read(one)[split].items():
            assert flat(read(tmp_path / "two")[split][task]) == pytest.approx(flat(metrics), rel=1e-3)


def assert_same_end(run: Path, whole: Path) -> None:
    last = steps(whole)[-1]
    assert weights(checkpoint_path(run / "checkpoints", last)) == weights(checkpoint_path(whole / "checkpoints", last))
    assert losses(run) == losses(whole)
    for key in ("epochs", "best_epoch", "steps", "test", "val", "logloss_sum"):
        assert read(run)[key] == read(whole)[key], key


@pytest.mark.parametrize("step", [20, 30, EPOCH, 60])
def test_a_killed_run_ends_with_the_same_bits(data, one, tmp_path, step):
    """From the midst of an epoch, from a validation in it, from the end of one, from the midst of the second."""
    if step == 30:
        assert 30 in validations(one)
    run = as_killed_after(one, step, tmp_path / "run")
    train_here(data, run, preset="stem", **ALL)
    assert_same_end(run, one)


def stop_in_validation(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have SIGTERM come in the validation of this number, counted from 1."""
    from recmtl.training import session

    evaluate, asked = session.evaluate, count(1)

    def evaluate_or_stop(*args: Any, **kwargs: Any) -> Any:
        if next(asked) == number:
            kwargs["stop"] = lambda: True
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(session, "evaluate", evaluate_or_stop)


def test_a_run_that_stops_before_it_has_validated_does_so_when_it_goes_on(data, one, tmp_path, monkeypatch):
    """SIGTERM comes in the validation after step 30."""
    stop_in_validation(2, monkeypatch)
    with pytest.raises(cli.Stopped, match="stopped and saved after step 30"):
        train_here(data, tmp_path / "run", preset="stem", **ALL)
    monkeypatch.undo()
    assert validations(tmp_path / "run") == [15]
    train_here(data, tmp_path / "run", preset="stem", **ALL)
    assert validations(tmp_path / "run") == validations(one)
    assert_same_end(tmp_path / "run", one)


@pytest.mark.parametrize("most", [20, EPOCH, EPOCH + 20])
def test_the_last_of_all_steps_is_measured_however_the_run_came_there(data, tmp_path, monkeypatch, most):
    """SIGTERM comes in the validation after ``training.max_steps``, within an epoch or at its end."""
    flags = {"training__max_steps": most, "metrics__tensorboard": False}
    train_here(data, tmp_path / "whole", **flags)
    stop_in_validation(len(validations(tmp_path / "whole")), monkeypatch)
    with pytest.raises(cli.Stopped, match=f"stopped and saved after step {most}"):
        train_here(data, tmp_path / "run", **flags)
    monkeypatch.undo()
    train_here(data, tmp_path / "run", **flags)
    assert validations(tmp_path / "run") == validations(tmp_path / "whole")
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_dropped_embeddings_go_on_with_the_same_bits(data, tmp_path):
    flags = {"embedding__dropout": 0.3, "training__max_epochs": 1, "metrics__tensorboard": False}
    train_here(data, tmp_path / "one", **flags)
    run = as_killed_after(tmp_path / "one", 20, tmp_path / "run")
    train_here(data, run, **flags)
    assert_same_end(run, tmp_path / "one")


def test_validations_within_an_epoch_change_no_step(data, tmp_path):
    """They are after every so many steps of all and at the ends of epochs, and the weights stay those without them."""
    flags = {"metrics__tensorboard": False, "model__dropout": 0.1}
    train_here(data, tmp_path / "without", **flags)
    train_here(data, tmp_path / "with", training__validate_every_steps=9, **flags)
    assert validations(tmp_path / "with") == sorted({*range(9, 2 * EPOCH, 9), EPOCH, 2 * EPOCH})
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    last = checkpoint_path(Path("checkpoints"), 2 * EPOCH)
    assert weights(tmp_path / "with" / last) == weights(tmp_path / "without" / last)


def test_the_best_model_is_of_any_validation_and_patience_counts_them(data, tmp_path):
    flags = {
        "embedding__lr": 5.0,
        "training__warmup_steps": 0,
        "training__patience": 3,
        "training__max_epochs": 20,
        "training__validate_every_steps": 10,
        "checkpoint__every_steps": 0,
        "checkpoint__keep": 1,
        "metrics__tensorboard": False,
    }
    results = train_here(data, tmp_path / "run", **flags)
    costs = {line["step"]: line["val/loss"] for line in lines(tmp_path / "run") if "val/loss" in line}
    best = min(costs, key=costs.__getitem__)
    after = [step for step in costs if step > best]
    assert best % EPOCH != 0
    assert len(after) == 3
    assert results["steps"] == after[-1]
    assert results["best_epoch"] == 1 + best // EPOCH
    assert best_checkpoint(tmp_path / "run").name == f"step-{best:09d}"
    assert sum(task["logloss"] for task in results["val"].values()) == pytest.approx(costs[best])
    # Only the best and the newest are there; the model that is measured is the former.
    assert steps(tmp_path / "run") == [best, after[-1]]
    state = read_json(checkpoint_path(tmp_path / "run" / "checkpoints", after[-1]) / "train_state.json")
    assert (state["bad_validations"], state["validated_step"]) == (3, after[-1])
    # A run that stops at that step and goes no further measures the same model.
    again = train_here(data, tmp_path / "again", **flags, training__max_steps=best)
    for split in ("val", "test"):
        for task in ("click", "like"):
            assert flat(again[split][task]) == flat(results[split][task])


TABLE = "model.model.embeddings.collection.embedding_bags.{}.weight"


def table_states(session: ShardedModel) -> list[float]:
    """The sum of every state of the tables' optimiser."""
    found = session.optimizer.state_dict()["state"]
    states = [state for key, of_table in found.items() if table_of(key) for state in of_table.values()]
    shards = [state.local_shards()[0].tensor if isinstance(state, ShardedTensor) else state for state in states]
    return [shard.sum().item() for shard in shards]


@pytest.mark.parametrize("placement", ["sharded", "data_parallel"])
def test_an_epoch_begins_with_tables_of_its_own(data, tmp_path, monkeypatch, placement):
    """All rows anew, states 0, other values than the first epoch's; the dense part goes on. No step moves a thing."""
    began = []

    def watched(session: ShardedModel, epoch: int) -> None:
        before = table_states(session)
        renew(session, epoch)
        began.append((epoch, min(before), max(table_states(session))))

    renew = ShardedModel.renew_tables
    monkeypatch.setattr(ShardedModel, "renew_tables", watched)
    flags = {
        "embedding__placement": placement,
        "embedding__optimizer": "adagrad",
        "embedding__reinitialize": True,
        "metrics__tensorboard": False,
    }
    still = {"embedding__lr": 1e-30, "dense__lr": 1e-30}
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    train_here(data, run, training__max_epochs=1, preset="stem", **flags)
    assert began == []
    train_here(data, run, training__max_epochs=3, preset="stem", **flags | still)
    assert [epoch for epoch, _, _ in began] == [1, 2]
    assert all(before > 0 and after == 0 for _, before, after in began)
    train_here(data, fresh, training__max_epochs=1, preset="stem", **flags | still)
    folder = run / "checkpoints"
    first, second, third = (tensors(run, checkpoint_path(folder, EPOCH * epochs)) for epochs in (1, 2, 3))
    drawn = tensors(fresh)
    for table, rows in {"user@click": 50, "item@shared": 200, "tag@like": 20}.items():
        name = TABLE.format(table)
        for found, others in ((second, (first, third, drawn)), (third, (first, second, drawn))):
            assert found[name].abs().max() <= 1 / rows**0.5
            assert found[name].std().item() == pytest.approx(1 / (3 * rows) ** 0.5, rel=0.1)
            for other in others:
                assert not torch.isclose(found[name], other[name], atol=1e-4).all(1).any()
    for key in first:
        if key.startswith("model.") and "embedding_bags" not in key:
            assert torch.equal(first[key], third[key]), key


def test_tables_of_histories_begin_anew_too(tmp_path, monkeypatch):
    """Those that are looked up row by row, and their states; with crosses of encoded histories."""
    write_histories(tmp_path, rows=1000)
    states: list[list[float]] = []

    def watched(session: ShardedModel, epoch: int) -> None:
        states.append(table_states(session))
        renew(session, epoch)
        states.append(table_states(session))

    renew = ShardedModel.renew_tables
    monkeypatch.setattr(ShardedModel, "renew_tables", watched)
    flags = {
        "embedding__reinitialize": True,
        "interaction__kind": "fm",
        "interaction__normalization": "batch",
        "sequence__encoder": "mean",
        "metrics__tensorboard": False,
    }
    train_here(tmp_path / "out", tmp_path / "run", **flags)
    before, after = states
    assert min(before) > 0
    assert set(after) == {0}
    folder, last = tmp_path / "run" / "checkpoints", steps(tmp_path / "run")[-1]
    ends = [tensors(tmp_path / "run", checkpoint_path(folder, step)) for step in (last // 2, last)]
    unpooled = [key for key in ends[0] if key.startswith("model.") and ".unpooled." in key]
    assert unpooled
    for key in unpooled:
        assert not torch.isclose(ends[0][key], ends[1][key], atol=1e-5).all(1).any()


def test_exports_and_predictions_have_the_layers(tmp_path):
    """Crosses and normalisation in the export and in the run folder: what evaluation computes; dropout in none."""
    data = write_kinds(tmp_path)
    flags = {"interaction.kind": "dot", "interaction.normalization": "batch", "embedding.dropout": 0.5}
    run = train(data, tmp_path / "run", "esmm", **flags)
    wanted = evaluated(data, run)
    cli.export([str(run), str(tmp_path / "export")])
    for model in ("run", "export"):
        cli.predict([str(tmp_path / model), str(tmp_path / "raw"), str(tmp_path / f"{model}-out")])
        rows = pq.read_table(tmp_path / f"{model}-out").to_pydict()
        for number, click, like in zip(rows["number"], rows["p_click"], rows["p_like"], strict=True):
            assert (click, like) == pytest.approx(tuple(wanted[number]), abs=1e-5)


def test_another_cross_is_another_run(data, tmp_path):
    train_here(data, tmp_path / "run", training__max_steps=1, metrics__tensorboard=False)
    with pytest.raises(
        UserError, match=r"config.toml: the run has interaction.kind none, not dcn; go on with that, or"
    ):
        train_here(data, tmp_path / "run", interaction__kind="dcn")


def test_validations_within_an_epoch_want_validation_rows(tmp_path):
    write_toy(tmp_path / "data", {"train": 64, "val": 0, "test": 8})
    with pytest.raises(UserError, match=r"^training.validate_every_steps: .*data has no validation rows; leave it out"):
        train_here(tmp_path / "data", tmp_path / "run", training__validate_every_steps=2)


def test_a_plan_counts_crosses(data):
    """Three layers of two matrices, [65, 4] and [4, 65], and a bias, of three table sets; Adam keeps two copies."""
    dense = []
    for kind in ("none", "dcn"):
        config = replace(load_config("stem"), interaction=InteractionConfig(kind=kind, layers=3, rank=4))
        estimate = MemoryEstimate.from_config(config, Dataset.load(data), Cluster(1, 1, "cpu", GIB))
        dense.append(estimate.memory[0].dense)
    assert dense[1] - dense[0] == 3 * 3 * (2 * 65 * 4 + 65) * 4 * (1 + 2)
