"""Where tables go: TorchRec's planner, fed with the memory that is really there."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import asdict, dataclass

from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, ShardingOption
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig

from recmtl.config import Config, ShardingConfig
from recmtl.distributed.replicas import replicas
from recmtl.distributed.step_time import StepTimeEstimator
from recmtl.distributed.storage import StorageEstimator, extra_bytes, weight_bytes
from recmtl.errors import UserError, nearest
from recmtl.objectives.train_module import TrainModule
from recmtl.runtime.private_api import chosen_options

CPU_TYPES = ("table_wise", "column_wise")
CUDA_TYPES = ("table_wise", "row_wise", "table_row_wise", "column_wise", "grid_shard")
WHOLE_ROW_TYPES = ("table_wise", "row_wise", "table_row_wise")
"""What `auto` chooses from. The others cut rows, and row-wise optimisers keep one state a piece of a row: their
results would depend on the number of ranks."""
UNPOOLED_TYPES = ("table_wise", "row_wise", "column_wise")
"""What there is for tables with sequences."""
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
    memory_bandwidth: float = 3.35e12
    """Of a GPU, bytes/s. The bandwidths' defaults are an H100 SXM's: HBM3, NVLink each way, one adapter of 400 Gbit/s
    a GPU; TorchRec's are a V100's. Only times depend on them, and what the planner prefers."""
    node_bandwidth: float = 450e9
    """Of a GPU to the others of its machine, bytes/s."""
    network_bandwidth: float = 50e9
    """Of a GPU to other machines, bytes/s."""


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
    state_bytes: int
    """Optimiser state, and a replicated table's dense gradient."""
    total_bytes: int
    """With the planner's estimate of inputs and outputs of a step."""
    step_ms: float
    """The planner's estimate of lookup, communication of outputs and gradients, and update."""
    parts_ms: dict[str, float]
    """Its parts, and under `ids` the exchange of ids, which the pipeline overlaps with the step before."""


@dataclass(frozen=True)
class Plan:
    """A sharding plan and what the planner expects of it."""

    cluster: Cluster
    shards: tuple[Shard, ...]
    sharding_plan: ShardingPlan

    def to_json(self) -> dict:
        """What ``plan.json`` holds."""
        return {"cluster": asdict(self.cluster), "shards": [asdict(shard) for shard in self.shards]}

    def widths(self) -> dict[str, int]:
        """Columns of the widest piece that a table is cut into, by table."""
        widths: dict[str, int] = {}
        for shard in self.shards:
            widths[shard.table] = max(widths.get(shard.table, 0), shard.dim)
        return widths

    def table_types(self) -> dict[str, str]:
        """Sharding type by table."""
        return {shard.table: shard.sharding for shard in self.shards}


def sharders() -> list[ModuleSharder]:
    """One for each kind of module that gets sharded."""
    return [EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder()]


def allowed_types(
    config: ShardingConfig,
    table: str,
    cluster: Cluster,
    replicated: Set[str] = frozenset(),
    *,
    unpooled: bool = False,
) -> list[str]:
    """Sharding types that the planner may choose from for one table.

    Args:
        config: the `sharding` section.
        table: its name.
        cluster: the devices.
        replicated: tables that every rank holds whole.
        unpooled: it has sequences.

    Raises:
        UserError: the configured one does not exist on this device.
    """
    if table in replicated and table not in config.tables:
        return ["data_parallel"]
    wanted = config.tables.get(table, config.type)
    known: tuple[str, ...] = CPU_TYPES if cluster.device == "cpu" else CUDA_TYPES
    if unpooled:
        known = tuple(kind for kind in known if kind in UNPOOLED_TYPES)
    if wanted == "auto" and cluster.world_size == 1:
        return ["table_wise"]  # the planner would as soon cut it for one rank, which then sorts ids for nothing
    if wanted == "auto":
        return [kind for kind in known if kind in WHOLE_ROW_TYPES]
    offered = known if unpooled else (*known, "data_parallel")
    if wanted not in offered:
        where = f"{cluster.device} for tables with sequences" if unpooled else cluster.device
        raise UserError(
            f"sharding of table '{table}': no {wanted} on {where}; choose {', '.join(offered[:-1])} or {offered[-1]}"
        )
    return [wanted]


def make_plan(train_module: TrainModule, config: Config, cluster: Cluster, batch_size: int) -> Plan:
    """Plan the tables of a run.

    Args:
        train_module: its tables are on the meta device.
        config: the run; `sharding.tables` comes before what `embedding.placement` replicates, and a `sharding.type`
            before what its `auto` does.
        cluster: the devices.
        batch_size: rows in one rank's batch.

    Raises:
        UserError: a table is named that isn't there, or the tables don't fit; names the largest.
    """
    embeddings = train_module.model.embeddings
    tables = {table.name: table for table in embeddings.tables}
    sharding, lengths = config.sharding, embeddings.lengths
    unpooled = {table.name for table in embeddings.tables if isinstance(table, EmbeddingConfig)}
    replicated = replicas(
        [table for table in embeddings.tables if table.name not in unpooled] if sharding.type == "auto" else (),
        [table.name for table in embeddings.task_tables if table.name not in unpooled],
        config.embedding,
        lengths,
        cluster.world_size,
        batch_size,
    )
    for name in sharding.tables:
        if name not in tables:
            known = nearest(name, tables) if tables else "all features are numeric, so there is none"
            raise UserError(f"sharding.tables: no table '{name}'; {known}")
    if not tables:
        return Plan(cluster, (), ShardingPlan({}))
    constraints = {
        name: ParameterConstraints(
            sharding_types=allowed_types(sharding, name, cluster, replicated, unpooled=name in unpooled),
            # In the device's memory. By itself the planner moves what does not fit a GPU to the host, behind a cache.
            compute_kernels=[EmbeddingComputeKernel.FUSED.value, EmbeddingComputeKernel.DENSE.value],
            # The planner knows only widths of 128 and more by itself; FBGEMM wants multiples of 4.
            min_partition=max(4, table.embedding_dim // cluster.world_size // 4 * 4),
            pooling_factors=[lengths[feature] for feature in table.feature_names],
            output_dtype=DataType.FP32,
        )
        for name, table in tables.items()
    }
    # Reserved here: TorchRec's reservation knows GPUs only.
    capacity = int(cluster.memory * (1 - sharding.reserve))
    topology = Topology(
        world_size=cluster.world_size,
        compute_device=cluster.device,
        local_world_size=cluster.local_world_size,
        hbm_mem_bw=cluster.memory_bandwidth / 1000,
        intra_host_bw=cluster.node_bandwidth / 1000,
        inter_host_bw=cluster.network_bandwidth / 1000,
        **({"hbm_cap": capacity} if cluster.device == "cuda" else {"ddr_cap": capacity}),
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=EmbeddingEnumerator(
            topology,
            batch_size,
            constraints,
            estimator=[
                StepTimeEstimator(topology, constraints),
                StorageEstimator(topology, constraints, config.embedding.optimizer),
            ],
        ),
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(0.0),
        debug=False,
    )
    try:
        plan = planner.plan(train_module, sharders())
    except PlannerError:
        largest = max(tables.values(), key=lambda t: t.num_embeddings * t.embedding_dim)
        itemsize = {DataType.FP32: 4, DataType.FP16: 2}
        weights = sum(t.num_embeddings * t.embedding_dim * itemsize[t.data_type] for t in tables.values())
        raise UserError(
            f"the tables ({weights / GIB:.1f} GiB of weights, largest '{largest.name}' with "
            f"{largest.num_embeddings:,} rows of {largest.embedding_dim}) do not fit "
            f"{cluster.world_size} x {cluster.memory / GIB:.1f} GiB, of which sharding.reserve leaves "
            f"{capacity / GIB:.1f}; use more ranks, a smaller embedding.dim, min_count or hash_rows in the recipe, or "
            "sharding.type auto"
        ) from None
    optimizer = config.embedding.optimizer
    return Plan(
        cluster, tuple(shard for option in chosen_options(planner) for shard in _shards(option, optimizer)), plan
    )


def _shards(option: ShardingOption, optimizer: str) -> list[Shard]:
    itemsize = option.tensor.element_size()
    result = []
    for shard in option.shards:
        assert shard.storage is not None
        assert shard.rank is not None
        assert shard.perf is not None
        rows, dim = shard.size
        perf = shard.perf
        result.append(
            Shard(
                option.name,
                option.sharding_type,
                shard.rank,
                rows,
                dim,
                weight_bytes(option.sharding_type, rows, dim, itemsize),
                extra_bytes(option.sharding_type, optimizer, rows, dim),
                shard.storage.hbm + shard.storage.ddr,
                perf.total,
                {
                    "lookup": perf.fwd_compute,
                    "outputs": perf.fwd_comms,
                    "gradients": perf.bwd_comms,
                    "update": perf.bwd_compute,
                    "ids": perf.input_dist_comms,
                },
            )
        )
    return result
