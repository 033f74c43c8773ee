"""Task weightings in a `TrainModule`: their gradients arrive in real tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import pcgrad_in_numpy
from torch import Tensor, nn
from toy import write_toy

from recmtl.config import MODELS, Config, EmbeddingConfig, ShardingConfig, WeightingConfig
from recmtl.data.read.batch import Batch
from recmtl.data.read.reader import Reader
from recmtl.distributed.context import process_group
from recmtl.distributed.parallel import initialize_tables, parallelize, table_weights
from recmtl.distributed.plan import GIB, Cluster, make_plan
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.train_module import TrainModule
from recmtl.objectives.weighting import METHODS
from recmtl.schema import Dataset

# What `recmtl` itself silences (recmtl/runtime/warnings.py).
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fbgemm:UserWarning")

DIM, ROWS = 8, 48


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Batch]:
    """Two tasks with weights, like with click as its parent, and one batch."""
    folder: Path = tmp_path_factory.mktemp("toy") / "data"
    dataset = write_toy(folder, {"train": ROWS, "val": 0, "test": 0})
    click, like = dataset.tasks
    dataset = replace(dataset, tasks=(replace(click, weight=2.0), replace(like, weight=0.5, parent="click")))
    return dataset, next(Reader(folder, dataset, "train", dataset.tasks, batch_size=ROWS, streams=4).batches())


def train_module_of(dataset: Dataset, method: str, name: str = "mmoe", **sizes) -> TrainModule:
    """With tables that have memory and large weights."""
    torch.manual_seed(3)
    config = MODELS[name].config(**sizes)
    weighting = WeightingConfig(method=method)  # type: ignore[arg-type]
    model = RankingModel(dataset, dataset.tasks, config, dim=DIM, device="cpu")
    for table in model.embeddings.parameters():
        nn.init.normal_(table, std=0.3)
    return TrainModule(model, weighting)


def gradients_of(loss: Tensor, train_module: TrainModule) -> dict[str, Tensor]:
    """By parameter's name; zeros where it is not reached."""
    names, parameters = zip(*train_module.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def losses_by_hand(train_module: TrainModule, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled embeddings [B, ΣD], logits [B, T] and losses [T], without `TrainModule`."""
    pooled = train_module.model.embeddings(batch.sparse)["shared"]
    logits = train_module.model.dense({"shared": torch.cat([pooled, batch.numeric], dim=1)})
    p = logits.sigmoid()
    entropies = -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log())
    return pooled, logits, (batch.weights[:, None] * entropies).sum(0)


def disagreeing(batch: Batch) -> Batch:
    """A row that has one label lacks the other, so that the tasks conflict."""
    return replace(batch, labels=torch.stack([batch.labels[:, 0], 1 - batch.labels[:, 0]], dim=1))


def test_pcgrad_through_mmoe_into_tables(toy):
    """Projection written plainly, on the pooled embeddings and the experts; gates and towers are the tasks' own."""
    dataset, batch = toy
    train_module = train_module_of(dataset, "pcgrad", experts=3, expert_widths=(8,), tower=(4,))
    batch = disagreeing(batch)
    pooled, _, losses = losses_by_hand(train_module, batch)
    losses = torch.tensor([2.0, 0.5]) * losses
    head = dict(train_module.model.dense.named_parameters())
    by_task = []
    for loss in losses:
        grads = torch.autograd.grad(loss, [pooled, *head.values()], retain_graph=True)
        by_task.append(dict(zip(["pooled", *head], grads, strict=True)))
    shared = ["pooled", *(name for name in head if name.startswith("level.experts"))]
    assert 1 < len(shared) < len(head)
    vectors = np.stack([torch.cat([one[name].flatten() for name in shared]).numpy() for one in by_task])
    assert vectors[0] @ vectors[1] < 0
    changed = torch.tensor(pcgrad_in_numpy(vectors, np.array([[1], [0]])), dtype=torch.float32)
    wanted = dict(zip(shared, changed.split([by_task[0][name].numel() for name in shared]), strict=True))

    tables = [bag.weight for bag in train_module.model.embeddings.collection.embedding_bags.values()]
    into_tables = torch.autograd.grad(pooled, tables, wanted["pooled"].view_as(pooled), retain_graph=True)
    loss, _ = train_module(batch)
    assert loss.item() == pytest.approx(losses.sum().item(), rel=1e-5)
    loss.backward()
    for table, gradient in zip(tables, into_tables, strict=True):
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(table.grad, gradient, rtol=1e-4, atol=1e-7)
    for name, parameter in head.items():
        gradient = wanted[name].view_as(parameter) if name in shared else by_task[0][name] + by_task[1][name]
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_gradnorm_looks_at_the_pooled_embeddings(toy):
    dataset, batch = toy
    train_module = train_module_of(dataset, "gradnorm", "shared_bottom", bottom=(8,), tower=())
    pooled, _, losses = losses_by_hand(train_module, batch)
    norms = torch.stack([torch.autograd.grad(loss, pooled, retain_graph=True)[0].norm() for loss in losses])
    wanted = gradients_of((torch.tensor([2.0, 0.5]) * losses).sum(), train_module)
    loss, _ = train_module(batch)
    loss.backward()
    # At the first step r = 1 and w = 1.
    w = train_module.weighting.w
    torch.testing.assert_close(w.grad, torch.sign(norms - norms.mean()) * norms, rtol=1e-4, atol=0)
    for name, parameter in train_module.named_parameters():
        if parameter is not w:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_models_own_term_is_added_as_it_is(toy, method):
    """AITM's calibrator: its gradient is neither weighted nor projected."""
    dataset, batch = toy
    found = {}
    for alpha in (0.0, 0.6):
        train_module = train_module_of(dataset, method, "aitm", bottom=(8,), alpha=alpha)
        found[alpha] = gradients_of(train_module(batch)[0], train_module)
    _, logits, _ = losses_by_hand(train_module, batch)
    click, like = logits.sigmoid().unbind(1)
    term = gradients_of(0.6 * (batch.weights * torch.relu(like - click)).sum(), train_module)
    assert max(gradient.abs().max() for gradient in term.values()) > 1e-3
    for name, gradient in term.items():
        torch.testing.assert_close(found[0.6][name], found[0.0][name] + gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharding", ["table_wise", "column_wise", "data_parallel"])
@pytest.mark.parametrize("method", ["gradnorm", "pcgrad", "multibalance"])
def test_sharded_tables_move_by_the_changed_gradient(monkeypatch, toy, method, sharding):
    """One step of SGD in backward, against the gradient of the unsharded module."""
    dataset, batch = toy
    sizes = {"experts": 2, "expert_widths": (8,), "tower": (4,)}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu"):
        config = Config(
            MODELS["mmoe"].config(**sizes),
            EmbeddingConfig(dim=DIM, optimizer="sgd", lr=10.0),
            weighting=WeightingConfig(method=method),  # type: ignore[arg-type]
            sharding=ShardingConfig(type=sharding),  # type: ignore[arg-type]
        )
        torch.manual_seed(0)
        train_module = TrainModule.from_config(config, dataset, dataset.tasks)
        plan = make_plan(train_module, config, Cluster(1, 1, "cpu", 4 * GIB), ROWS)
        model, optimizer = parallelize(train_module, plan, config, torch.device("cpu"))
        initialize_tables(model, config.training.seed, config.embedding.init_scale)

        def tables() -> dict[str, Tensor]:
            whole: dict[str, Tensor] = {}
            for name, piece, row, column, rows, dim in table_weights(model):
                place = whole.setdefault(name, torch.full((rows, dim), torch.nan))
                place[row : row + piece.shape[0], column : column + piece.shape[1]] = piece
            return whole

        before = tables()
        plain = train_module_of(dataset, method, **sizes)
        plain.model.dense.load_state_dict(train_module.model.dense.state_dict())
        plain.weighting.load_state_dict(train_module.weighting.state_dict())
        for name, bag in plain.model.embeddings.collection.embedding_bags.items():
            bag.weight.data = before[name].clone()
        plain(batch)[0].backward()

        optimizer.zero_grad()
        model(batch)[0].backward()
        optimizer.step()
        for name, after in tables().items():
            gradient = plain.model.embeddings.collection.embedding_bags[name].weight.grad
            assert gradient is not None
            assert gradient.abs().max() > 1e-3
            torch.testing.assert_close(after, before[name] - 10 * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "single_task"])
@pytest.mark.parametrize("method", ["gradnorm", "pcgrad", "multibalance"])
def test_every_models_parameters_get_a_gradient(toy, method, name):
    dataset, batch = toy
    train_module = train_module_of(dataset, method, name)
    train_module(batch)[0].backward()
    for parameter in train_module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_pcgrad_leaves_stems_tables_of_one_task(toy):
    dataset, batch = toy
    batch, found = disagreeing(batch), {}
    for method in ("fixed", "pcgrad"):
        train_module = train_module_of(dataset, method, "stem")
        for parameter in train_module.model.dense.towers.parameters():
            parameter.data[1] = parameter.data[0]
        found[method] = gradients_of(train_module(batch)[0], train_module)
    changed = {name for name in found["fixed"] if not torch.allclose(found["fixed"][name], found["pcgrad"][name])}
    tables = [name for name in found["fixed"] if "embedding_bags" in name]
    assert {name for name in tables if "@shared" in name} <= changed
    assert not changed & {name for name in tables if "@shared" not in name}
