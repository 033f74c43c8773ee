"""Where the planner puts tables: on devices that need not exist, within their memory, and what cannot be."""

from __future__ import annotations

import pytest

from recmtl.config import Config, EmbeddingConfig, ShardingConfig
from recmtl.config.models import MMoEConfig
from recmtl.distributed.plan import GIB, WHOLE_ROW_TYPES, Cluster, Plan, make_plan
from recmtl.errors import UserError
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset, Feature, Table, Task

MODEL = MMoEConfig(experts=2, expert_widths=(8,), tower=(4,))
ONE_CPU = Cluster(1, 1, "cpu", 4 * GIB)


def paper_dataset(rows: int = 10_000_000) -> Dataset:
    """One large table and several small ones."""
    tables = (Table("large", rows), *(Table(f"small_{i}", 1000 + i) for i in range(10)))
    return Dataset("paper", {}, tables, tuple(Feature(t.name, table=t.name) for t in tables), (Task("t"),))


def plan_of(dataset: Dataset, cluster: Cluster, dim: int = 64, **sharding) -> Plan:
    config = Config(model=MODEL, sharding=ShardingConfig(**sharding))
    return make_plan(TrainModule(RankingModel(dataset, dataset.tasks, MODEL, dim=dim)), config, cluster, 512)


CLUSTERS = [
    Cluster(world_size, min(8, world_size), device, memory * GIB)
    for world_size, device, memory in [
        (1, "cpu", 16),
        (2, "cpu", 16),
        (8, "cpu", 4),
        (1, "cuda", 80),
        (8, "cuda", 2),
        (64, "cuda", 80),
    ]
]


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda c: f"{c.world_size} {c.device}")
def test_auto_keeps_rows_whole_and_places_every_table(cluster):
    dataset = paper_dataset()
    plan = plan_of(dataset, cluster)
    assert set(plan.table_types()) == {table.name for table in dataset.tables}
    assert set(plan.table_types().values()) <= set(WHOLE_ROW_TYPES)
    weights: dict[int, int] = {}
    for table in dataset.tables:
        shards = [shard for shard in plan.shards if shard.table == table.name]
        assert sum(shard.rows for shard in shards) == table.rows
        assert {shard.dim for shard in shards} == {64}
        assert sum(shard.weight_bytes for shard in shards) == table.rows * 64 * 4
        for shard in shards:
            assert 0 <= shard.rank < cluster.world_size
            weights[shard.rank] = weights.get(shard.rank, 0) + shard.total_bytes
    assert max(weights.values()) <= cluster.memory


def test_a_table_that_one_gpu_cannot_hold_is_cut():
    plan = plan_of(paper_dataset(40_000_000), Cluster(8, 8, "cuda", 8 * GIB))
    assert plan.table_types()["large"] in ("row_wise", "table_row_wise")
    assert len({shard.rank for shard in plan.shards if shard.table == "large"}) == 8


def test_single_tables_come_before_the_type_of_all():
    cluster = Cluster(2, 2, "cpu", 16 * GIB)
    tables = {"large": "column_wise", "small_3": "data_parallel"}
    types = plan_of(paper_dataset(1000), cluster, type="table_wise", tables=tables).table_types()
    assert types == {name: tables.get(name, "table_wise") for name in types}


def test_column_wise_cuts_columns():
    plan = plan_of(paper_dataset(1000), Cluster(2, 2, "cpu", 16 * GIB), type="column_wise")
    pieces = [(shard.rows, shard.dim) for shard in plan.shards if shard.table == "large"]
    assert pieces == [(1000, 32), (1000, 32)]


def test_tables_that_do_not_fit_are_an_error_with_the_way_out():
    with pytest.raises(UserError) as caught:
        plan_of(paper_dataset(), Cluster(2, 2, "cpu", GIB // 2))
    message = str(caught.value)
    assert "do not fit 2 x 0.5 GiB" in message
    assert "largest 'large' with 10,000,000 rows of 64" in message
    assert "\n" not in message


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_reserved_is_not_filled(device):
    """2.4 GiB of weights fit 2.6 GiB, and 2.47 with the optimiser's state; a tenth less does not."""
    cluster = Cluster(1, 1, device, int(2.6 * GIB))
    assert plan_of(paper_dataset(), cluster, reserve=0.0)
    with pytest.raises(UserError, match=r"do not fit 1 x 2.6 GiB, of which sharding.reserve leaves 2.3"):
        plan_of(paper_dataset(), cluster, reserve=0.1)


@pytest.mark.parametrize(
    ("optimizer", "a_row"), [("sgd", 0), ("rowwise_adagrad", 4), ("adagrad", 256), ("rowwise_adam", 260), ("adam", 512)]
)
def test_optimiser_state_counts(optimizer, a_row):
    config = Config(model=MODEL, embedding=EmbeddingConfig(optimizer=optimizer))
    train_module = TrainModule(RankingModel(paper_dataset(), paper_dataset().tasks, MODEL, dim=64))
    plan = make_plan(train_module, config, Cluster(1, 1, "cuda", 80 * GIB), 512)
    [large] = [shard for shard in plan.shards if shard.table == "large"]
    assert large.state_bytes == 10_000_000 * a_row
    ids_and_outputs = 512 * (8 + 64 * 4)
    assert large.total_bytes == large.weight_bytes + large.state_bytes + ids_and_outputs


def test_lists_are_planned_at_their_mean_length():
    features = (
        Feature("short", table="t"),
        Feature("long", kind="list", table="t", mean_length=40.0),
        Feature("old", kind="list", table="t"),
    )
    dataset = Dataset("lists", {}, (Table("t", 1000),), features, (Task("t"),))
    [shard] = plan_of(dataset, Cluster(1, 1, "cpu", GIB)).shards
    outputs = 3 * 512 * 64 * 4
    assert shard.total_bytes - shard.weight_bytes - shard.state_bytes == 512 * (1 + 40 + 1) * 8 + outputs


def test_a_gpus_tables_do_not_spill_to_the_host():
    with pytest.raises(UserError, match=r"do not fit 2 x 1.0 GiB"):
        plan_of(paper_dataset(), Cluster(2, 2, "cuda", GIB))


def test_one_rank_cuts_nothing():
    assert set(plan_of(paper_dataset(), Cluster(1, 1, "cuda", 80 * GIB)).table_types().values()) == {"table_wise"}


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        ({"tables": {"larg": "table_wise"}}, "sharding.tables: no table 'larg'; did you mean 'large'"),
        ({"type": "row_wise"}, "sharding of table 'large': no row_wise on cpu; choose table_wise, column_wise"),
        ({"tables": {"small_1": "grid_shard"}}, "sharding of table 'small_1': no grid_shard on cpu"),
    ],
)
def test_sharding_that_cannot_be_is_an_error(sharding, message):
    with pytest.raises(UserError) as caught:
        plan_of(paper_dataset(1000), ONE_CPU, **sharding)
    assert str(caught.value).startswith(message)


def test_plan_json_holds_cluster_and_shards():
    plan = plan_of(paper_dataset(1000), ONE_CPU).to_json()
    assert (
        plan["cluster"].items() >= {"world_size": 1, "local_world_size": 1, "device": "cpu", "memory": 4 * GIB}.items()
    )
    assert {shard["table"] for shard in plan["shards"]} == {table.name for table in paper_dataset(1000).tables}
