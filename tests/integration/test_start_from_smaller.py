"""Runs that start from another one whose data had fewer features, or that learned fewer tasks."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from grown import REUSED, describe
from runs import train_here
from started import begin, tensors
from toy import ROW_GROUP, write_toy

from recmtl.config import MODELS
from recmtl.data.prepare.content import ContentDigests
from recmtl.errors import UserError
from recmtl.schema import ENCODER, SPLITS, Dataset, Feature

ROWS = {"train": 640, "val": 100, "test": 100}
SHORT = {"training__max_steps": 6, "metrics__tensorboard": False, "model__expert_widths": 8, "model__dropout": 0.1}
STATE = "optimizer.state.embedding.model.embeddings.collection.embedding_bags.{0}.weight.{0}.momentum1"


def add_feature(folder: Path, before: Path) -> None:
    """Grown data with a table, a number, and a second feature of the table user, beside those that there were."""
    new = write_toy(folder, ROWS, seed=3, table_rows=(60, 230))
    content = ContentDigests()
    for split in SPLITS:
        for path in new.files(folder, split):
            table = pq.read_table(path)
            table = table.append_column("again", table.column("user"))
            content.add(split, table)
            pq.write_table(table, path, row_group_size=ROW_GROUP)
    features = (*new.features[:1], Feature("again", table="user"), *new.features[1:])
    new = replace(new, features=features, content=content.hexdigests())
    describe(folder, new, Dataset.load(before), before / ENCODER, REUSED)


def test_a_feature_and_a_task_more(tmp_path: Path) -> None:
    write_toy(tmp_path / "data", ROWS, extra_features=False)
    train_here(tmp_path / "data", tmp_path / "run0", tasks=("click",), dense__weight_decay=0.1, **SHORT)
    add_feature(tmp_path / "later", tmp_path / "data")
    begin(tmp_path / "later", tmp_path / "run0", tmp_path / "run", training={"tasks": ()})
    before, now = tensors(tmp_path / "run0"), tensors(tmp_path / "run")
    # x was user, item, previous; it is user, again, item, previous, tags, price.
    columns = [*range(16), *range(32, 64)]
    dense = "model.model.dense."
    weight, step = f"{dense}level.experts.weights.0", "optimizer.state.dense.model.dense.{}"
    assert now[weight].shape[1] == 81
    assert torch.equal(now[weight][:, columns], before[weight])
    gate = f"{dense}level.gates.0.logits.weights.0"
    assert (before[gate].shape, now[gate].shape) == ((1, 48, 4), (2, 81, 4))
    assert torch.equal(now[gate][:1, columns], before[gate])
    for moment in ("exp_avg", "exp_avg_sq"):
        name = step.format(f"level.experts.weights.0.{moment}")
        assert torch.equal(now[name][:, columns], before[name])
        others = [column for column in range(81) if column not in columns]
        assert now[name][:, others].count_nonzero() == 0
    tower = f"{dense}towers.mlps.weights.0"
    assert torch.equal(now[tower][0], before[tower][0])
    assert now[tower][1].std() > 0
    # What is new is what a run of its own begins with.
    train_here(tmp_path / "later", tmp_path / "fresh", **SHORT | {"training__max_steps": 1, "dense__lr": 1e-30})
    fresh = tensors(tmp_path / "fresh")
    torch.testing.assert_close(now[tower][1], fresh[tower][1], rtol=0, atol=1e-12)
    torch.testing.assert_close(now[weight][:, 16:32], fresh[weight][:, 16:32], rtol=0, atol=1e-12)
    assert now[STATE.format("tag")].count_nonzero() == 0


@pytest.mark.parametrize("kind", ["dcn", "fm", "dot"])
def test_crosses_grow_with_the_features(tmp_path: Path, kind: str) -> None:
    """Of x the columns are 48, then 81, as above; beside them lie 16 of fm, or 3 pairs of fields, then 10 of dot."""
    write_toy(tmp_path / "data", ROWS, extra_features=False)
    flags = {"interaction__kind": kind, "interaction__normalization": "batch"}
    train_here(tmp_path / "data", tmp_path / "run0", **SHORT, **flags)
    add_feature(tmp_path / "later", tmp_path / "data")
    begin(tmp_path / "later", tmp_path / "run0", tmp_path / "run", interaction={"kind": kind, "normalization": "batch"})
    before, now = tensors(tmp_path / "run0"), tensors(tmp_path / "run")
    dense = "model.model.dense."
    columns = [*range(16), *range(32, 64)]
    # Pairs of (user, again, item, previous, tags) in their order; user, item and previous were there.
    crosses = {"dcn": [], "fm": [*range(81, 97)], "dot": [81 + 1, 81 + 2, 81 + 7]}[kind]
    weight, mean = f"{dense}level.experts.weights.0", f"{dense}input_layers.norm.mean"
    assert torch.equal(now[weight][:, columns + crosses], before[weight])
    assert torch.equal(now[mean][..., columns], before[mean])
    if kind == "dcn":
        factor = f"{dense}input_layers.cross.factors.0"
        assert torch.equal(now[factor][:, columns][..., columns], before[factor])


def with_parents(folder: Path) -> Path:
    """The same data, in which a like follows a click."""
    dataset = Dataset.load(folder)
    replace(dataset, tasks=(dataset.tasks[0], replace(dataset.tasks[1], parent="click"))).save(folder)
    return folder


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with few features, and grown ones with more."""
    folder = tmp_path_factory.mktemp("smaller")
    write_toy(folder / "data", ROWS, extra_features=False)
    add_feature(folder / "later", folder / "data")
    for name in ("data", "later"):
        with_parents(folder / name)
    return folder


FIXED_FEATURES = ("me_mmoe", "pepnet")
"""Models whose layers read every feature more than once, side by side."""
NO_GROWTH = {
    "a feature": "which is no growth: new are feature 'again', feature 'tags', feature 'price', and the model cannot",
    "a task": "which is no growth: new are feature 'again'.*, task 'like', and the model cannot take them so; leave",
}
FREE_TASKS = ("aitm", "escm2", "esmm", "mmoe", "omoe", "resflow", "shared_bottom", "single_task")
"""Models whose networks of a task's own are towers, gates and bottoms."""


@pytest.mark.slow
@pytest.mark.parametrize("more", ["a feature", "a task"])
@pytest.mark.parametrize("model", MODELS)
def test_models_that_grow(smaller: Path, tmp_path: Path, model: str, more: str) -> None:
    first: tuple[str, ...] = ("click",) if more == "a task" or model == "single_task" else ()
    then = ("click",) if model == "single_task" else ()
    flags = {"training__max_steps": 1, "metrics__tensorboard": False}
    train_here(smaller / "data", tmp_path / "run0", preset=model, tasks=first, **flags)
    grows = model in FREE_TASKS if more == "a task" else model not in FIXED_FEATURES
    with nullcontext() if grows else pytest.raises(UserError, match=NO_GROWTH[more]):
        begin(smaller / "later", tmp_path / "run0", tmp_path / "run", training={"tasks": then})
