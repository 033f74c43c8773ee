"""Sharding on one rank: tables start alike on every plan, optimisers follow their formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType as OptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)
from toy import write_toy

from recmtl.config import Config, DenseConfig, EmbeddingConfig, ShardingConfig, TrainingConfig
from recmtl.config.models import MMoEConfig
from recmtl.data.read.batch import Batch
from recmtl.data.read.reader import Reader
from recmtl.distributed import parallel
from recmtl.distributed.context import process_group
from recmtl.distributed.parallel import initialize_tables, parallelize, table_weights
from recmtl.distributed.plan import GIB, Cluster, make_plan
from recmtl.errors import UserError
from recmtl.objectives.train_module import TrainModule
from recmtl.optim.schedule import Schedule
from recmtl.optim.sparse import sparse_optimizer
from recmtl.schema import Dataset

# What `recmtl` itself silences (recmtl/runtime/warnings.py).
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fbgemm:UserWarning")

MODEL = MMoEConfig(experts=2, expert_widths=(8,), tower=(4,))
DIM, BATCH, LR, EPS = 8, 48, 0.1, 1e-4
ONE_CPU = Cluster(1, 1, "cpu", 4 * GIB)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch):
    """A process group of one, and none left after."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu"):
        yield
    assert not dist.is_initialized()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("toy") / "data"
    return folder, write_toy(folder, {"train": 2 * BATCH, "val": 0, "test": 0})


def config_of(sharding: str = "auto", optimizer: str = "rowwise_adagrad", **training) -> Config:
    return Config(
        model=MODEL,
        embedding=EmbeddingConfig(dim=DIM, optimizer=optimizer, lr=LR, eps=EPS),  # type: ignore[arg-type]
        dense=DenseConfig(optimizer="sgd", lr=LR),
        sharding=ShardingConfig(type=sharding),  # type: ignore[arg-type]
        training=TrainingConfig(**training),
    )


def sharded(dataset: Dataset, config: Config):
    """The sharded model, its optimiser and the unsharded module it was made of (the dense part is the same)."""
    torch.manual_seed(0)
    train_module = TrainModule.from_config(config, dataset, dataset.tasks)
    plan = make_plan(train_module, config, ONE_CPU, BATCH)
    model, optimizer = parallelize(train_module, plan, config, torch.device("cpu"))
    initialize_tables(model, config.training.seed, config.embedding.init_scale)
    return model, optimizer, train_module


def whole_tables(model) -> dict[str, torch.Tensor]:
    """Copies of the tables, put together from their pieces."""
    tables: dict[str, torch.Tensor] = {}
    for name, piece, row, column, rows, dim in table_weights(model):
        whole = tables.setdefault(name, torch.full((rows, dim), torch.nan))
        whole[row : row + piece.shape[0], column : column + piece.shape[1]] = piece
    return tables


def batches(toy: tuple[Path, Dataset]) -> list[Batch]:
    folder, dataset = toy
    return list(Reader(folder, dataset, "train", dataset.tasks, batch_size=BATCH, streams=4).batches())


@pytest.mark.parametrize("sharding", ["table_wise", "column_wise", "data_parallel"])
def test_tables_start_alike_on_every_plan_and_within_their_bound(toy, sharding):
    _, dataset = toy
    tables = whole_tables(sharded(dataset, config_of(sharding))[0])
    assert {name: tuple(table.shape) for name, table in tables.items()} == {
        table.name: (table.rows, DIM) for table in dataset.tables
    }
    reference = whole_tables(sharded(dataset, config_of("auto"))[0])
    for name, table in tables.items():
        assert torch.equal(table, reference[name])
        bound = table.shape[0] ** -0.5
        assert 0.9 * bound < table.abs().max() <= bound
        assert abs(table.mean()) < 0.2 * bound
        assert len(table.unique()) > 0.99 * table.numel()


def test_seed_and_scale_of_the_first_weights(toy):
    _, dataset = toy
    model, _, _ = sharded(dataset, config_of("table_wise", seed=1))
    first = whole_tables(model)
    initialize_tables(model, 1, 3.0)
    for name, table in whole_tables(model).items():
        torch.testing.assert_close(table, 3 * first[name])
    initialize_tables(model, 2, 1.0)
    assert not torch.equal(whole_tables(model)["user"], first["user"])


ROWS = 3 * parallel.INIT_ROWS + 17


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param([(0, ROWS // 2, 0, 4), (ROWS // 2, ROWS, 0, 4)], id="rows"),
        pytest.param([(0, ROWS, 0, 1), (0, ROWS, 1, 4)], id="columns"),
        pytest.param(
            [(0, 70_000, 0, 4), (70_000, 70_001, 0, 4), (70_001, ROWS, 0, 3), (70_001, ROWS, 3, 4)], id="both"
        ),
    ],
)
def test_pieces_of_a_large_table_are_the_whole_table_cut(monkeypatch, cuts):
    """Pieces as row-wise and grid sharding make them on GPUs, across the blocks that are drawn at once."""

    def fill(pieces: list[tuple[int, int, int, int]]) -> torch.Tensor:
        whole = torch.full((ROWS, 4), torch.nan)
        views = [("t", whole[top:end, left:right], top, left, ROWS, 4) for top, end, left, right in pieces]
        monkeypatch.setattr(parallel, "table_weights", lambda model: iter(views))
        initialize_tables(torch.nn.Module(), 5, 1.0)
        return whole

    assert torch.equal(fill(cuts), fill([(0, ROWS, 0, 4)]))


def loss_in_plain_torch(
    train_module: TrainModule, tables: dict[str, torch.Tensor], batch: Batch, decay: float = 0.0
) -> torch.Tensor:
    """The loss from tables indexed row by row, and the dense network; what weight decay adds is of embeddings alone."""
    tags = [tables["tag"][ids.long()] for ids in batch.sparse["tags"].to_dense()]
    x = torch.cat(
        [
            *(
                tables[table][batch.sparse[feature].values().long()]
                for feature, table in (("user", "user"), ("item", "item"), ("previous", "item"))
            ),
            torch.stack([bag.mean(0) if len(bag) else torch.zeros(DIM) for bag in tags]),
            batch.numeric,
        ],
        dim=1,
    )
    logits = train_module.model.dense({"shared": x})
    p = logits.sigmoid()
    entropies = -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log())
    embedded = x[:, : -batch.numeric.shape[1]]
    return (entropies * batch.weights[:, None]).sum() + decay / 2 * (embedded**2).sum() / len(x)


def updated(
    optimizer: str, table: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor]
) -> torch.Tensor:
    """One step of the formula; `state` holds the accumulator."""
    if optimizer == "sgd":
        return table - LR * gradient
    squares = gradient**2 if optimizer == "adagrad" else (gradient**2).mean(1, keepdim=True)
    state["sum"] = state.get("sum", 0) + squares
    return table - LR * gradient / (state["sum"].sqrt() + EPS)


@pytest.mark.parametrize("sharding", ["table_wise", "column_wise", "data_parallel"])
@pytest.mark.parametrize(
    ("optimizer", "decay"), [("rowwise_adagrad", 0.0), ("rowwise_adagrad", 0.5), ("adagrad", 0.0), ("sgd", 0.5)]
)
def test_embeddings_follow_the_optimizers_formula(toy, sharding, optimizer, decay):
    _, dataset = toy
    config = config_of(sharding, optimizer)
    config.embedding.weight_decay = decay
    model, combined, train_module = sharded(dataset, config)
    tables = whole_tables(model)
    states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in tables}
    for batch in batches(toy):
        leaves = {name: table.clone().requires_grad_() for name, table in tables.items()}
        wanted_loss = loss_in_plain_torch(train_module, leaves, batch, decay)
        gradients = dict(zip(leaves, torch.autograd.grad(wanted_loss, list(leaves.values())), strict=True))
        tables = {name: updated(optimizer, tables[name], gradients[name], states[name]) for name in tables}

        combined.zero_grad()
        loss, _ = model(batch)
        assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-5)
        loss.backward()
        combined.step()
        for name, table in whole_tables(model).items():
            touched = gradients[name].abs().amax(1) > 1e-6  # below it, Adagrad makes steps of rounding noise
            assert touched.sum() > 10
            torch.testing.assert_close(table[touched], tables[name][touched], rtol=1e-3, atol=1e-4)
            untouched = (gradients[name] == 0).all(1)
            assert torch.equal(table[untouched], tables[name][untouched])
        tables = whole_tables(model)


def test_fbgemm_does_nothing_with_a_weight_decay_on_cpus():
    """Which is why weight decay of tables is in the loss; once this fails, the optimiser can have it."""
    tables = []
    for decay in (0.0, 0.5):
        table = SplitTableBatchedEmbeddingBagsCodegen(
            [(5, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=OptimType.EXACT_ROWWISE_ADAGRAD,
            weight_decay=decay,
            weight_decay_mode=WeightDecayMode.L2,
        )
        [weights] = table.split_embedding_weights()
        weights.fill_(1.0)
        table(torch.tensor([0, 1, 1]), torch.tensor([0, 2, 3])).sum().backward()
        assert not torch.equal(weights[0], weights[4])
        tables.append(weights)
    assert torch.equal(*tables)


def test_dense_part_moves_against_its_gradient(toy):
    _, dataset = toy
    model, combined, train_module = sharded(dataset, config_of())
    before = {name: p.detach().clone() for name, p in train_module.model.dense.named_parameters()}
    combined.zero_grad()
    model(batches(toy)[0])[0].backward()
    gradients = {name: p.grad.clone() for name, p in train_module.model.dense.named_parameters()}
    combined.step()
    for name, p in train_module.model.dense.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - LR * gradients[name])


def test_clipping_limits_the_dense_gradient(toy):
    _, dataset = toy
    model, combined, train_module = sharded(dataset, config_of(clip_norm=1e-3))
    before = torch.cat([p.detach().flatten() for p in train_module.dense_parameters()]).clone()
    combined.zero_grad()
    model(batches(toy)[0])[0].backward()
    assert torch.cat([p.grad.flatten() for p in train_module.dense_parameters()]).norm() > 1e-2
    combined.step()
    moved = torch.cat([p.detach().flatten() for p in train_module.dense_parameters()]) - before
    assert moved.norm().item() == pytest.approx(LR * 1e-3, rel=0.01)


@pytest.mark.parametrize("sharding", ["table_wise", "data_parallel"])
def test_warm_up_scales_both_learning_rates(toy, sharding):
    """SGD makes a step proportional to the rate."""
    _, dataset = toy
    moves = []
    for steps in (0, 10):
        model, combined, train_module = sharded(dataset, config_of(sharding, "sgd"))
        table, dense = whole_tables(model)["item"], [p.detach().clone() for p in train_module.dense_parameters()]
        Schedule(combined, TrainingConfig(warmup_steps=steps), 100).set(2)
        combined.zero_grad()
        model(batches(toy)[0])[0].backward()
        combined.step()
        moved = [p.detach() - q for p, q in zip(train_module.dense_parameters(), dense, strict=True)]
        moves.append([whole_tables(model)["item"] - table, *moved])
    for full, scaled in zip(*moves, strict=True):
        assert full.abs().max() > 0
        torch.testing.assert_close(scaled, 0.3 * full, rtol=1e-3, atol=1e-6)


def test_warm_up_ends_at_the_full_rates(toy):
    _, dataset = toy
    _, combined, _ = sharded(dataset, config_of())
    warmup = Schedule(combined, TrainingConfig(warmup_steps=4), 100)
    rates = []
    for step in range(6):
        warmup.set(step)
        rates.append([group["lr"] for _, optimizer in combined.optimizers for group in optimizer.param_groups])
    for found, scale in zip(rates, (0.25, 0.5, 0.75, 1, 1, 1), strict=True):
        assert found == pytest.approx([LR * scale] * len(found))


def rates_of(combined: Any, steps: int, **training: Any) -> list[float]:
    """The rates of every step over the full ones, which all parameters share."""
    schedule, scales = Schedule(combined, TrainingConfig(**training), 5), []
    for step in range(steps):
        schedule.set(step)
        groups = [group for _, optimizer in combined.optimizers for group in optimizer.param_groups]
        scales.append(schedule.scale)
        assert [group["lr"] for group in groups] == pytest.approx([LR * schedule.scale] * len(groups))
    return scales


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"max_epochs": 2}, 10),
        ({"max_epochs": 20, "max_steps": 8}, 8),
        ({"max_epochs": 1, "max_steps": 8}, 5),
        ({"max_epochs": 20, "schedule_steps": 12}, 12),
    ],
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_rates_fall_to_0_over_the_steps_of_the_run(toy, training, steps, warmup):
    for kind, fall in {"linear": lambda p: 1 - p, "cosine": lambda p: math.cos(p * math.pi / 2) ** 2}.items():
        _, combined, _ = sharded(toy[1], config_of())
        found = rates_of(combined, steps + 3, schedule=kind, warmup_steps=warmup, **training)
        rising = [(step + 1) / warmup for step in range(warmup)]
        falling = [fall(step / (steps - warmup)) for step in range(steps - warmup)]
        assert found == pytest.approx([*rising, *falling, 0, 0, 0])


def test_a_warm_up_leaves_steps_for_rates_to_fall(toy):
    _, combined, _ = sharded(toy[1], config_of())
    message = (
        r"^training.warmup_steps: fewer than the 10 steps after which rates are 0 \(training.schedule linear\), not 10"
    )
    with pytest.raises(UserError, match=message):
        Schedule(combined, TrainingConfig(schedule="linear", warmup_steps=10, max_epochs=2), 5)


def test_constant_rates_take_no_steps_to_fall(toy):
    _, combined, _ = sharded(toy[1], config_of())
    with pytest.raises(UserError, match=r"^training.schedule_steps: 12 with training.schedule constant, whose rates"):
        Schedule(combined, TrainingConfig(schedule_steps=12), 5)


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adam"])
def test_tables_do_not_begin_anew_under_adam(optimizer):
    message = f"^embedding.reinitialize: not with embedding.optimizer {optimizer}; choose one of rowwise_adagrad"
    with pytest.raises(UserError, match=message):
        sparse_optimizer(EmbeddingConfig(optimizer=optimizer, reinitialize=True), "cuda")


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adam"])
def test_optimizers_that_cpus_lack(optimizer):
    with pytest.raises(UserError, match=f"no {optimizer} on the CPU; choose one of rowwise_adagrad, adagrad, sgd"):
        sparse_optimizer(EmbeddingConfig(optimizer=optimizer), "cpu")


def test_data_parallel_tables_lack_an_optimizer(toy):
    _, dataset = toy
    config = config_of("data_parallel", "rowwise_adam")
    train_module = TrainModule.from_config(config, dataset, dataset.tasks)
    plan = make_plan(train_module, config, ONE_CPU, BATCH)
    with pytest.raises(
        UserError, match=r"no rowwise_adam for data-parallel tables \(item, tag, user\); choose rowwise_adagrad"
    ):
        parallelize(train_module, plan, config, torch.device("cuda"))
