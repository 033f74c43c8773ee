"""Rows without a label and rows that weigh more: a step is that of the rows that count, as often as they weigh."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from toy import write_toy

from recmtl.config import MODELS, WeightingConfig
from recmtl.data.read.batch import Batch
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.losses import learned_labels
from recmtl.objectives.train_module import TrainModule
from recmtl.objectives.weighting import METHODS
from recmtl.schema import Dataset, Task

TASKS = (Task("click", weight=2.0), Task("like", weight=0.5, parent="click"), Task("follow", parent="click"))
ROWS = 24
MODELS_OF_SEVERAL = [name for name in MODELS if name not in ("single_task", "home")]
"""HoME normalises over the batch, in which a row without weight has a part: its step is another one."""
Step = tuple[Tensor, dict[str, Tensor]]
"""Loss and gradients by name; those of the pooled embeddings are rows of the batch."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    toy = write_toy(tmp_path_factory.mktemp("toy") / "data", {"train": 8, "val": 0, "test": 0})
    return replace(toy, tasks=TASKS)


def train_module_of(dataset: Dataset, name: str, method: str = "fixed", micro_batch_size: int = 0) -> TrainModule:
    torch.manual_seed(0)
    model = RankingModel(dataset, TASKS, MODELS[name].config(), dim=8).double()
    train_module = TrainModule(model, WeightingConfig(method=method), micro_batch_size, uneven=True).double()  # type: ignore[arg-type]
    train_module.weighting.step = 3
    return train_module


def rows_of(train_module: TrainModule, rows: int = ROWS) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Pooled embeddings as if looked up, numbers, labels."""
    generator = torch.Generator().manual_seed(1)
    embeddings, numbers = train_module.model.embeddings, 1

    def draw(width: int) -> Tensor:
        return torch.randn(rows, width, generator=generator, dtype=torch.float64)

    pooled = {name: draw(embeddings.width - numbers) for name in embeddings.regroup.keys}
    return pooled, draw(numbers), (draw(len(TASKS)) > 0).double()


def step(
    train_module: TrainModule,
    pooled: dict[str, Tensor],
    numbers: Tensor,
    labels: Tensor,
    row_weights: Tensor | None = None,
) -> Step:
    pooled = {name: values.detach().clone().requires_grad_() for name, values in pooled.items()}
    rows = len(labels)
    batch = Batch(
        KeyedJaggedTensor([], torch.empty(0), lengths=torch.empty(0)),
        numbers,
        labels,
        torch.full((rows,), 1 / rows, dtype=torch.float64),
        rows,
        row_weights=row_weights,
    )
    loss, _ = train_module.loss(pooled, batch)
    loss.backward()
    gradients = {name: p.grad for name, p in (*train_module.named_parameters(), *pooled.items())}
    return loss.detach(), {name: g for name, g in gradients.items() if g is not None}


def assert_same(found: Step, wanted: Step, rows: Tensor | None = None) -> None:
    """The same loss and gradients; `rows` of the pooled embeddings' are those that are wanted, the others have none."""
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=1e-9)
    assert set(found[1]) == set(wanted[1])
    for name, gradient in wanted[1].items():
        mine = found[1][name]
        if rows is not None and "." not in name:
            assert not mine[~rows].any()
            mine = mine[rows]
        torch.testing.assert_close(mine, gradient, rtol=1e-6, atol=1e-9, msg=name)


each_model_and_method = pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in MODELS_OF_SEVERAL for method in METHODS]
)


@each_model_and_method
def test_rows_that_do_not_count_might_as_well_not_be_there(dataset, name, method):
    """Some without any label, some of weight 0, some both."""
    train_module = train_module_of(dataset, name, method)
    pooled, numbers, labels = rows_of(train_module)
    nothing = torch.arange(ROWS) % 3 == 0
    weights = torch.ones_like(labels)
    weights[nothing & (torch.arange(ROWS) % 2 == 0)] = 0
    unlabelled = labels.masked_fill((nothing & (torch.arange(ROWS) % 4 < 2)).unsqueeze(1), torch.nan)
    # Every row without a part lacks labels or weight, whichever of the two.
    weights[nothing & ~unlabelled.isnan().all(1)] = 0
    found = step(train_module, pooled, numbers, unlabelled, weights)
    rest = {key: values[~nothing] for key, values in pooled.items()}
    wanted = step(train_module_of(dataset, name, method), rest, numbers[~nothing], labels[~nothing])
    assert_same(found, wanted, ~nothing)


@each_model_and_method
def test_a_row_of_weight_2_is_that_row_twice(dataset, name, method):
    train_module = train_module_of(dataset, name, method)
    pooled, numbers, labels = rows_of(train_module)
    weights = torch.ones_like(labels)
    weights[::4] = 2
    found = step(train_module, pooled, numbers, labels, weights)
    twice = torch.cat([torch.arange(ROWS), torch.arange(0, ROWS, 4)])
    again = {key: values[twice] for key, values in pooled.items()}
    _, gradients = wanted = step(train_module_of(dataset, name, method), again, numbers[twice], labels[twice])
    for key in pooled:
        gradients[key] = torch.zeros_like(pooled[key]).index_add_(0, twice, gradients[key])
    assert_same(found, wanted)


@pytest.mark.parametrize("name", [name for name in MODELS_OF_SEVERAL if name not in ("esmm", "aitm", "escm2")])
def test_the_loss_of_a_task_is_the_mean_over_its_rows(dataset, name):
    """Every task alone on the rows that have its label, by the mean that a batch without gaps has."""
    train_module = train_module_of(dataset, name)
    pooled, numbers, labels = rows_of(train_module)
    generator = torch.Generator().manual_seed(2)
    known = torch.rand(labels.shape, generator=generator) < 0.6
    found = step(train_module, pooled, numbers, labels.masked_fill(~known, torch.nan))
    total, gradients = torch.zeros((), dtype=torch.float64), {}
    for place, task in enumerate(TASKS):
        rows = known[:, place]
        alone = train_module_of(dataset, name)
        alone.weighting.task_weights.copy_(torch.eye(len(TASKS))[place] * task.weight)
        some = {key: values[rows] for key, values in pooled.items()}
        loss, mine = step(alone, some, numbers[rows], labels[rows])
        total += loss
        for key, gradient in mine.items():
            if key in pooled:
                gradient = torch.zeros_like(pooled[key]).index_copy_(0, rows.nonzero().squeeze(1), gradient)
            gradients[key] = gradients.get(key, 0) + gradient
    assert_same(found, (total, gradients))


@pytest.mark.parametrize("name", ["mmoe", "esmm", "escm2", "aitm"])
def test_micro_batches_do_not_change_the_step(dataset, name):
    results = []
    for size in (0, 7):
        train_module = train_module_of(dataset, name, micro_batch_size=size)
        pooled, numbers, labels = rows_of(train_module)
        labels[::3, 1] = torch.nan
        results.append(step(train_module, pooled, numbers, labels, 1 + labels.nan_to_num(0.0)))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_task_without_labels_in_a_step_adds_nothing(dataset, method):
    """Its loss is 0, not 0/0, and what the method knows of the others is what it would be without the task."""
    train_module = train_module_of(dataset, "shared_bottom", method)
    before = {key: value.clone() for key, value in train_module.weighting.state_dict().items()}
    pooled, numbers, labels = rows_of(train_module)
    labels[:, 1] = torch.nan
    loss, gradients = step(train_module, pooled, numbers, labels)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for key, value in train_module.weighting.state_dict().items():
        if value.dim() and value.shape[-1] == len(TASKS):
            torch.testing.assert_close(value[..., 1], before[key][..., 1], msg=key)
    for key, gradient in gradients.items():
        if key.startswith("weighting"):
            assert not gradient[1].any()


def split_rows() -> list[slice]:
    """Rows of two ranks."""
    return [slice(0, 10), slice(10, ROWS)]


def train_on(rank: int, folder: Path, names: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    dataset = replace(Dataset.load(folder / "data"), tasks=TASKS)
    results = {}
    for name in names:
        train_module, (pooled, numbers, labels, weights) = uneven_step(dataset, name)
        mine = split_rows()[rank]
        some = {key: values[mine] for key, values in pooled.items()}
        results[name] = step(train_module, some, numbers[mine], labels[mine], weights[mine])
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def uneven_step(dataset: Dataset, name: str) -> tuple[TrainModule, tuple[dict[str, Tensor], Tensor, Tensor, Tensor]]:
    """One rank has no label of the second task, and both have other weights."""
    train_module = train_module_of(dataset, name)
    pooled, numbers, labels = rows_of(train_module)
    labels[split_rows()[0], 1] = torch.nan
    weights = torch.arange(1.0, ROWS + 1, dtype=torch.float64).unsqueeze(1).expand_as(labels).clone()
    return train_module, (pooled, numbers, labels, weights)


def test_two_ranks_are_one(tmp_path):
    names = ["mmoe", "stem", "aitm", "escm2"]
    dataset = replace(write_toy(tmp_path / "data", {"train": 8, "val": 0, "test": 0}), tasks=TASKS)
    torch.multiprocessing.spawn(train_on, (tmp_path, names), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in names:
        train_module, rows = uneven_step(dataset, name)
        loss, gradients = step(train_module, *rows)
        losses, parts = zip(*(rank[name] for rank in ranks), strict=True)
        # DDP and TorchRec take the mean over ranks.
        torch.testing.assert_close(sum(losses) / 2, loss, rtol=1e-9, atol=0)
        for key, wanted in gradients.items():
            joined = torch.cat([part[key] for part in parts]) if key in rows[0] else sum(part[key] for part in parts)
            torch.testing.assert_close(joined / 2, wanted, rtol=1e-6, atol=1e-9, msg=key)


def funnel_labels() -> Iterator[tuple[list[float], list[float]]]:
    """Labels of click, like, follow of a row, and the joint ones that ESMM learns."""
    nan = float("nan")
    yield [0, nan, nan], [0, 0, 0]
    yield [1, nan, 1], [1, nan, 1]
    yield [1, 0, nan], [1, 0, nan]
    yield [nan, nan, 1], [nan, nan, 1]
    yield [0, 1, 0], [0, 1, 0]  # what the log says stays


def test_a_task_that_its_parent_shuts_out_did_not_happen(dataset):
    model = train_module_of(dataset, "esmm").model.dense
    given, wanted = (torch.tensor(rows) for rows in zip(*funnel_labels(), strict=True))
    np.testing.assert_equal(learned_labels(model, given).numpy(), wanted.numpy())
