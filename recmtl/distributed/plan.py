"""Where tables go: TorchRec's planner, fed with the memory that is really there."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, ShardingOption
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from recmtl.config import EmbeddingConfig, ShardingConfig
from recmtl.errors import UserError

CPU_TYPES = ("table_wise", "column_wise")
CUDA_TYPES = ("table_wise", "row_wise", "table_row_wise", "column_wise", "grid_shard")
WHOLE_ROW_TYPES = ("table_wise", "row_wise", "table_row_wise")
"""What `auto` chooses from. The others cut rows, and row-wise optimisers keep one state a piece of a row: their
results would depend on the number of ranks."""
GIB = 2**30


@dataclass(frozen=True)
class Cluster:
    """The devices to plan for, real or on paper."""

    world_size: int
    local_world_size: int
    device: str
    """cpu or cuda."""
    memory: int
    """Bytes a rank may fill."""


@dataclass(frozen=True)
class Shard:
    """A piece of a table on one rank."""

    table: str
    sharding: str
    rank: int
    rows: int
    dim: int
    weight_bytes: int
    """Weights alone."""
    total_bytes: int
    """The planner's estimate with optimiser state, inputs and outputs."""
    step_ms: float
    """The planner's estimate of lookup, communication and update."""


@dataclass(frozen=True)
class Plan:
    """A sharding plan and what the planner expects of it."""

    cluster: Cluster
    shards: tuple[Shard, ...]
    sharding_plan: ShardingPlan

    def to_json(self) -> dict:
        """What ``plan.json`` holds."""
        return {"cluster": asdict(self.cluster), "shards": [asdict(shard) for shard in self.shards]}

    def table_types(self) -> dict[str, str]:
        """Sharding type by table."""
        return {shard.table: shard.sharding for shard in self.shards}


def sharder() -> EmbeddingBagCollectionSharder:
    """The one kind of module that gets sharded."""
    return EmbeddingBagCollectionSharder()


def replicas(tables: Iterable[EmbeddingBagConfig], config: EmbeddingConfig, world_size: int) -> set[str]:
    """Names of the tables of tasks' own that every rank gets whole, as `embedding.placement` says.

    `auto` takes the smallest while weights, dense gradients and optimiser states of all it took fit
    `embedding.replica_mib`; on one rank none, as nothing would be saved.

    Args:
        tables: the tables of tasks' own.
        config: the `embedding` section.
        world_size: number of ranks.
    """
    if config.placement == "sharded" or (config.placement == "auto" and world_size == 1):
        return set()
    if config.placement == "data_parallel":
        return {table.name for table in tables}
    chosen: set[str] = set()
    left = config.replica_mib * 2**20
    for table in sorted(tables, key=lambda t: t.num_embeddings * t.embedding_dim):
        states = {"sgd": 0, "rowwise_adagrad": 1}.get(config.optimizer, table.embedding_dim)
        left -= 4 * table.num_embeddings * (2 * table.embedding_dim + states)
        if left < 0:
            break
        chosen.add(table.name)
    return chosen


def allowed_types(
    config: ShardingConfig, table: str, cluster: Cluster, replicated: Set[str] = frozenset()
) -> list[str]:
    """Sharding types that the planner may choose from for one table.

    Raises:
        UserError: the configured one does not exist on this device.
    """
    if table in replicated and table not in config.tables:
        return ["data_parallel"]
    wanted = config.tables.get(table, config.type)
    known = CPU_TYPES if cluster.device == "cpu" else CUDA_TYPES
    if wanted == "auto" and cluster.world_size == 1:
        return ["table_wise"]  # the planner would as soon cut it for one rank, which then sorts ids for nothing
    if wanted == "auto":
        return [kind for kind in known if kind in WHOLE_ROW_TYPES]
    if wanted not in (*known, "data_parallel"):
        raise UserError(
            f"sharding of table '{table}': no {wanted} on {cluster.device}; choose {', '.join(known)} or data_parallel"
        )
    return [wanted]


def make_plan(
    module: nn.Module, config: ShardingConfig, cluster: Cluster, batch_size: int, replicated: Set[str] = frozenset()
) -> Plan:
    """Plan the tables of `module`.

    Args:
        module: holds an EmbeddingBagCollection, on the meta device.
        config: the `sharding` section.
        cluster: the devices.
        batch_size: rows in one rank's batch.
        replicated: tables that every rank gets whole (`replicas`), unless `sharding.tables` names them.

    Raises:
        UserError: a table is named that isn't there, or the tables don't fit; names the largest.
    """
    tables = {
        table.name: table
        for child in module.modules()
        if isinstance(child, EmbeddingBagCollection)
        for table in child.embedding_bag_configs()
    }
    for name in config.tables:
        if name not in tables:
            raise UserError(f"sharding.tables: no table '{name}'; the run has {', '.join(tables)}")
    constraints = {
        name: ParameterConstraints(
            sharding_types=allowed_types(config, name, cluster, replicated),
            # In the device's memory. By itself the planner moves what does not fit a GPU to the host, behind a cache.
            compute_kernels=[EmbeddingComputeKernel.FUSED.value, EmbeddingComputeKernel.DENSE.value],
            # The planner knows only widths of 128 and more by itself; FBGEMM wants multiples of 4.
            min_partition=max(4, table.embedding_dim // cluster.world_size // 4 * 4),
            pooling_factors=[1.0] * len(table.feature_names),
        )
        for name, table in tables.items()
    }
    capacity = {"hbm_cap": cluster.memory} if cluster.device == "cuda" else {"ddr_cap": cluster.memory}
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=cluster.world_size,
            compute_device=cluster.device,
            local_world_size=cluster.local_world_size,
            **capacity,
        ),
        batch_size=batch_size,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(config.reserve),
        debug=False,
    )
    try:
        plan = planner.plan(module, [sharder()])
    except PlannerError:
        largest = max(tables.values(), key=lambda t: t.num_embeddings * t.embedding_dim)
        weights = sum(t.num_embeddings * t.embedding_dim * 4 for t in tables.values())
        raise UserError(
            f"the tables ({weights / GIB:.1f} GiB of weights, largest '{largest.name}' with "
            f"{largest.num_embeddings:,} rows of {largest.embedding_dim}) do not fit "
            f"{cluster.world_size} x {cluster.memory / GIB:.1f} GiB; use more ranks, a smaller "
            "embedding.dim, min_count or hash_rows in the recipe, or sharding.type auto"
        ) from None
    options: list[ShardingOption] = planner._best_plan or []
    return Plan(cluster, tuple(shard for option in options for shard in _shards(option)), plan)


def _shards(option: ShardingOption) -> list[Shard]:
    itemsize = torch.tensor([], dtype=option.tensor.dtype).element_size()
    result = []
    for shard in option.shards:
        assert shard.storage is not None
        assert shard.rank is not None
        rows, dim = shard.size
        result.append(
            Shard(
                option.name,
                option.sharding_type,
                shard.rank,
                rows,
                dim,
                rows * dim * itemsize,
                shard.storage.hbm + shard.storage.ddr,
                shard.perf.total if shard.perf is not None else 0.0,
            )
        )
    return result
