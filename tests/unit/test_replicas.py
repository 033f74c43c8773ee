"""Which tables every rank holds whole."""

from __future__ import annotations

import pytest
from torchrec import EmbeddingBagConfig

from recmtl.config import Config, EmbeddingConfig, ShardingConfig
from recmtl.config.models import MMoEConfig
from recmtl.distributed.plan import GIB, Cluster, make_plan
from recmtl.distributed.replicas import gradient_bytes, lookup_bytes, replicas
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset, Feature, Table, Task

DIM, BATCH = 8, 64
ONCE = BATCH * (4 + 4 + 2 * 4 * DIM) // (2 * 4 * DIM)
"""Rows, 72, whose gradient is as many bytes as looking up one id in each of 64 rows: 4,608."""


def table(name: str, rows: int, *features: str) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(rows, DIM, name=name, feature_names=list(features or (name,)))


TABLES = [
    table("tiny", 3),
    table("as_many", ONCE),
    table("more", ONCE + 1),
    table("twice", 2 * ONCE, "now", "before"),
    table("lists", 200),
    table("large", 10_000),
]
LENGTHS = dict.fromkeys(("tiny", "as_many", "more", "now", "before", "large"), 1.0) | {"lists": 60.0}
FEW_BYTES = ["as_many", "lists", "tiny", "twice"]


def chosen(world_size: int = 2, of_tasks: tuple[str, ...] = (), gain: float = 0.0, **settings: object) -> list[str]:
    config = EmbeddingConfig(replica_gain_mib=gain, **settings)  # type: ignore[arg-type]
    return sorted(replicas(TABLES, of_tasks, config, LENGTHS, world_size, BATCH))


def test_bytes_of_both_ways():
    assert gradient_bytes(TABLES[0]) == 2 * 4 * 3 * DIM
    # Ids and their number out, a pooled embedding back, its gradient out: for every row and feature.
    assert lookup_bytes(TABLES[3], LENGTHS, BATCH) == BATCH * 2 * (4 + 4 + 2 * 4 * DIM)
    assert lookup_bytes(TABLES[4], LENGTHS, BATCH) == BATCH * (60 * 4 + 4 + 2 * 4 * DIM)
    assert gradient_bytes(TABLES[1]) == lookup_bytes(TABLES[1], LENGTHS, BATCH)


def test_what_is_fewer_bytes_is_replicated():
    assert chosen() == chosen(world_size=512) == FEW_BYTES


def test_all_together_must_spare_enough():
    names = {table.name: table for table in TABLES}
    spared = sum(lookup_bytes(names[name], LENGTHS, BATCH) - gradient_bytes(names[name]) for name in FEW_BYTES) / 2**20
    assert chosen(gain=spared) == FEW_BYTES
    assert chosen(gain=spared + 1e-6) == []
    assert chosen(gain=spared + 1e-6, placement="data_parallel", of_tasks=("large",)) == ["large"]


def test_one_rank_exchanges_nothing():
    assert chosen(world_size=1) == []


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adam"])
def test_not_where_a_dense_optimiser_moves_other_rows(optimizer):
    assert chosen(optimizer=optimizer) == []


def test_placement():
    assert chosen(placement="sharded", of_tasks=("large", "tiny")) == []
    assert chosen(placement="data_parallel", of_tasks=("large", "tiny")) == sorted({*FEW_BYTES, "large"})
    assert chosen(placement="data_parallel", of_tasks=("large", "tiny"), world_size=1) == ["large", "tiny"]
    assert chosen(of_tasks=("large", "tiny")) == FEW_BYTES


@pytest.mark.parametrize(("optimizer", "state"), [("sgd", 0), ("rowwise_adagrad", 1), ("adagrad", DIM)])
def test_memory_is_limited(optimizer, state):
    """3 and 72 rows, each with weights, gradients and states."""
    both = 4 * (3 + ONCE) * (2 * DIM + state) / 2**20
    assert chosen(optimizer=optimizer, replica_mib=both) == ["as_many", "tiny"]
    assert chosen(optimizer=optimizer, replica_mib=both - 1 / 2**20) == ["tiny"]
    assert chosen(optimizer=optimizer, replica_mib=0) == []


@pytest.mark.parametrize(
    ("sharding", "wanted"),
    [
        ({}, {"small": "data_parallel"}),
        ({"tables": {"small": "table_wise"}}, {"small": "table_wise"}),
        ({"type": "table_wise"}, {"small": "table_wise", "large": "table_wise"}),
        ({"type": "table_wise", "tables": {"large": "column_wise"}}, {"small": "table_wise", "large": "column_wise"}),
    ],
)
def test_a_sharding_type_that_is_asked_for_comes_first(sharding, wanted):
    tables = (Table("small", 100), Table("large", 100_000))
    features = tuple(Feature(table.name, table=table.name) for table in tables)
    dataset = Dataset("paper", {}, tables, features, (Task("t"),))
    model = MMoEConfig(experts=2, expert_widths=(8,), tower=(4,))
    module = TrainModule(RankingModel(dataset, dataset.tasks, model, dim=64))
    config = Config(model, EmbeddingConfig(replica_gain_mib=0), sharding=ShardingConfig(**sharding))
    plan = make_plan(module, config, Cluster(2, 2, "cpu", 4 * GIB), 512)
    assert plan.table_types().items() >= wanted.items()
    ranks = [shard.rank for shard in plan.shards if shard.table == "small"]
    assert sorted(ranks) == ([0, 1] if wanted["small"] == "data_parallel" else ranks)
