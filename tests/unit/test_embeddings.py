"""Copies of tables in table sets, and where every piece of x comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor
from toy import write_toy

from recmtl.config import MODELS
from recmtl.data.read.batch import Batch
from recmtl.data.read.reader import Reader
from recmtl.errors import UserError
from recmtl.models.embeddings import Embeddings, Regroup
from recmtl.models.ranking_model import RankingModel
from recmtl.schema import Dataset

DIM = 8
SETS = ("click", "like", "shared")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("toy") / "data"
    return folder, write_toy(folder, {"train": 60, "val": 0, "test": 0})


def first_batch(toy: tuple[Path, Dataset]) -> Batch:
    folder, dataset = toy
    return next(Reader(folder, dataset, "train", dataset.tasks, batch_size=24, streams=4).batches())


def model_of(dataset: Dataset) -> RankingModel:
    torch.manual_seed(0)
    config = MODELS["stem"].config(expert_widths=(8,), tower=(4,))
    return RankingModel(dataset, dataset.tasks, config, dim=DIM, device="cpu")


def bags(model: RankingModel) -> dict[str, Tensor]:
    return {name: bag.weight for name, bag in model.embeddings.collection.embedding_bags.items()}


def test_a_loss_reaches_its_own_tables_and_the_shared_ones_only(toy):
    _, dataset = toy
    batch = first_batch(toy)
    model = model_of(dataset)
    for weight in bags(model).values():
        nn.init.normal_(weight)
    x = model.embeddings(batch.sparse)
    x = {table_set: torch.cat([values, batch.numeric], dim=1) for table_set, values in x.items()}
    model.dense(x)[:, 0].sum().backward()  # click
    for table in dataset.tables:
        gradients = [bags(model)[f"{table.name}@{table_set}"].grad for table_set in SETS]
        assert [bool(gradient.any()) for gradient in gradients] == [True, False, True]


def test_which_tables_are_of_tasks_own(toy):
    _, dataset = toy
    separate = Embeddings(dataset, DIM, SETS)
    assert {t.name for t in separate.task_tables} == {
        f"{table.name}@{task}" for table in dataset.tables for task in ("click", "like")
    }
    assert Embeddings(dataset, DIM).task_tables == []


def test_a_task_called_like_the_shared_tables_is_an_error(toy):
    _, dataset = toy
    tasks = (replace(dataset.tasks[0], name="shared"), dataset.tasks[1])
    with pytest.raises(UserError, match="a task is called 'shared'"):
        Embeddings(dataset, DIM, MODELS["stem"].load().table_sets(None, tasks))


@settings(deadline=None)
@given(st.data())
def test_regroup_picks_every_key(data):
    """Any order of keys, any split into table sets: against picking columns one by one."""
    widths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))
    keys = [f"k{i}" for i in range(len(widths))]
    order = data.draw(st.permutations(keys))
    if data.draw(st.booleans()):
        order = keys  # in order: nothing is copied
    cuts = sorted(data.draw(st.lists(st.integers(1, len(keys)), max_size=2, unique=True)))
    bounds = list(zip([0, *cuts], [*cuts, len(keys)], strict=True))
    sets = {f"s{i}": order[start:end] for i, (start, end) in enumerate(bounds) if end > start}
    pooled = KeyedTensor(keys, widths, torch.arange(2.0 * sum(widths)).reshape(2, -1))
    found = Regroup(sets)(pooled)
    assert list(found) == list(sets)
    for table_set, members in sets.items():
        assert torch.equal(found[table_set], torch.cat([pooled[key] for key in members], dim=1))
