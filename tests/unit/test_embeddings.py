"""Copies of tables for embedding groups: apart or side by side, and where every piece of x comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor
from toy import write_toy

from recmtl.config import EmbeddingConfig
from recmtl.data.batch import Batch
from recmtl.data.dataset import Dataset
from recmtl.data.reader import Reader
from recmtl.distributed.plan import replicas
from recmtl.errors import UserError
from recmtl.models import model_class
from recmtl.models.embeddings import Embeddings, Regroup
from recmtl.models.ranker import Ranker

DIM = 8
GROUPS = ("click", "like", "shared")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("toy") / "data"
    return folder, write_toy(folder, {"train": 60, "val": 0, "test": 0})


def first_batch(toy: tuple[Path, Dataset]) -> Batch:
    folder, dataset = toy
    return next(Reader(folder, dataset, "train", dataset.tasks, batch_size=24, streams=4).batches())


def ranker_of(dataset: Dataset, layout: str) -> Ranker:
    torch.manual_seed(0)
    config = model_class("stem").Config(expert_widths=(8,), tower=(4,))
    ranker = Ranker(dataset, dataset.tasks, config, dim=DIM, layout=layout)
    ranker.embeddings.to_empty(device=torch.device("cpu"))
    return ranker


def bags(ranker: Ranker) -> dict[str, Tensor]:
    return {name: bag.weight for name, bag in ranker.embeddings.collection.embedding_bags.items()}


def filled_alike(dataset: Dataset) -> tuple[Ranker, Ranker]:
    """A ranker of each layout with the same weights."""
    separate, wide = ranker_of(dataset, "separate"), ranker_of(dataset, "side_by_side")
    for table in dataset.tables:
        parts = [nn.init.normal_(bags(separate)[f"{table.name}@{group}"]) for group in GROUPS]
        with torch.no_grad():
            bags(wide)[table.name].copy_(torch.cat(parts, dim=1))
    return separate, wide


def test_both_layouts_compute_the_same_and_train_the_same(toy):
    _, dataset = toy
    batch = first_batch(toy)
    separate, wide = filled_alike(dataset)
    assert {name: tuple(bag.shape) for name, bag in bags(wide).items()} == {
        table.name: (table.rows, 3 * DIM) for table in dataset.tables
    }
    losses = [ranker(batch)[0] for ranker in (separate, wide)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    for table in dataset.tables:
        parts = torch.cat([bags(separate)[f"{table.name}@{group}"].grad for group in GROUPS], dim=1)
        assert parts.any()
        torch.testing.assert_close(bags(wide)[table.name].grad, parts)


@pytest.mark.parametrize("layout", ["separate", "side_by_side"])
def test_a_loss_reaches_its_own_tables_and_the_shared_ones_only(toy, layout):
    _, dataset = toy
    batch = first_batch(toy)
    ranker = ranker_of(dataset, layout)
    for weight in bags(ranker).values():
        nn.init.normal_(weight)
    x = ranker.embeddings(batch.sparse)
    x = {group: torch.cat([values, batch.numeric], dim=1) for group, values in x.items()}
    ranker.head.model(x)[:, 0].sum().backward()  # click
    for table in dataset.tables:
        gradients = {
            group: bags(ranker)[f"{table.name}@{group}"].grad
            if layout == "separate"
            else bags(ranker)[table.name].grad[:, i * DIM : (i + 1) * DIM]
            for i, group in enumerate(GROUPS)
        }
        assert [bool(gradients[group].any()) for group in GROUPS] == [True, False, True]


def test_only_tables_of_tasks_own_can_be_replicated(toy):
    _, dataset = toy
    separate = Embeddings(dataset, DIM, GROUPS)
    assert {t.name for t in separate.task_tables} == {
        f"{table.name}@{task}" for table in dataset.tables for task in ("click", "like")
    }
    assert Embeddings(dataset, DIM).task_tables == []
    assert Embeddings(dataset, DIM, GROUPS, "side_by_side").task_tables == []


@pytest.mark.parametrize(
    ("placement", "ranks", "mib", "wanted"),
    [
        ("sharded", 8, 1000.0, ""),
        ("data_parallel", 1, 0.0, "user item tag"),
        ("auto", 1, 1000.0, ""),
        ("auto", 2, 1000.0, "user item tag"),
        ("auto", 2, 0.0, ""),
        # 20 rows of 8 take 4·20·(8 + 8 + 1) bytes, 50 take 3,400; twice, for two tasks.
        ("auto", 2, 2 * 1360 / 2**20, "tag"),
        ("auto", 2, (2 * 1360 + 2 * 3400) / 2**20, "tag user"),
        ("auto", 2, (2 * 1360 + 2 * 3400 - 1) / 2**20, "tag user@click"),
    ],
)
def test_what_is_replicated(toy, placement, ranks, mib, wanted):
    _, dataset = toy
    tables = Embeddings(dataset, DIM, GROUPS).task_tables
    config = EmbeddingConfig(placement=placement, replica_mib=mib)
    names = {n if "@" in n else f"{n}@{task}" for n in wanted.split() for task in ("click", "like")}
    assert replicas(tables, config, ranks) == names


def test_optimizer_states_count(toy):
    _, dataset = toy
    tables = Embeddings(dataset, DIM, GROUPS).task_tables
    for optimizer, state in (("sgd", 0), ("rowwise_adagrad", 1), ("adagrad", DIM)):
        needed = 2 * 4 * 20 * (2 * DIM + state) / 2**20
        for mib, chosen in ((needed, 2), (needed - 1 / 2**20, 1)):
            config = EmbeddingConfig(placement="auto", replica_mib=mib, optimizer=optimizer)
            assert len(replicas(tables, config, 2)) == chosen


def test_a_task_called_like_the_shared_tables_is_an_error(toy):
    _, dataset = toy
    tasks = (replace(dataset.tasks[0], name="shared"), dataset.tasks[1])
    with pytest.raises(UserError, match="a task is called 'shared'"):
        Embeddings(dataset, DIM, model_class("stem").embedding_groups(None, tasks))


@given(st.data())
def test_regroup_picks_every_piece(data):
    """Any order of keys, any split into groups, any number of pieces a key: against picking columns one by one."""
    parts = data.draw(st.integers(1, 3))
    widths = data.draw(st.lists(st.integers(1, 4).map(lambda w: w * parts), min_size=1, max_size=5))
    keys = [f"k{i}" for i in range(len(widths))]
    pieces = data.draw(st.permutations([(key, part) for key in keys for part in range(parts)]))
    if data.draw(st.booleans()):
        pieces = sorted(pieces)  # in order: nothing is copied
    cuts = sorted(data.draw(st.lists(st.integers(1, len(pieces)), max_size=2, unique=True)))
    bounds = list(zip([0, *cuts], [*cuts, len(pieces)], strict=True))
    groups = {f"g{i}": pieces[start:end] for i, (start, end) in enumerate(bounds) if end > start}
    values = torch.arange(2.0 * sum(widths)).reshape(2, -1)
    pooled = KeyedTensor(keys, widths, values)
    found = Regroup(groups, parts)(pooled)
    assert list(found) == list(groups)
    for group, members in groups.items():
        columns = []
        for key, part in members:
            width = widths[keys.index(key)] // parts
            columns.append(pooled[key][:, part * width : (part + 1) * width])
        assert torch.equal(found[group], torch.cat(columns, dim=1))
