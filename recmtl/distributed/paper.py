"""``recmtl plan``: the sharding plan and the memory of every rank, on paper."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recmtl.config import Config
from recmtl.data.dataset import Dataset
from recmtl.distributed.plan import GIB, Cluster, Plan, Shard, make_plan, replicas
from recmtl.errors import UserError
from recmtl.models.ranker import Ranker

DENSE_COPIES = 4
"""Weights, gradients and Adam's two moments: what a replicated dense parameter takes."""
RANKS_SHOWN = 16


def show_plan(config: Config, data: Path, world_size: int, device: str, hbm_gib: float, ranks_per_node: int) -> str:
    """Plan a run for devices that need not exist.

    Args:
        config: the run.
        data: its prepared folder.
        world_size: number of ranks.
        device: cpu or cuda.
        hbm_gib: memory of one rank, GiB.
        ranks_per_node: ranks on one machine.

    Returns:
        Two tables: where each embedding table goes, and what each rank holds.

    Raises:
        UserError: the tables do not fit, or an option is out of range.
    """
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device: cpu or cuda, not {device}")
    if world_size < 1 or hbm_gib <= 0 or ranks_per_node < 1:
        raise UserError("--world_size, --hbm_gib and --ranks_per_node must be greater than 0")
    dataset = Dataset.load(data)
    tasks = dataset.select_tasks(tuple(config.training.tasks))
    ranker = Ranker(dataset, tasks, config.model, dim=config.embedding.dim, layout=config.embedding.layout)
    cluster = Cluster(world_size, min(world_size, ranks_per_node), device, int(hbm_gib * GIB))
    replicated = replicas(ranker.embeddings.task_tables, config.embedding, world_size)
    plan = make_plan(ranker, config.sharding, cluster, -(-config.training.batch_size // world_size), replicated)
    dense = sum(p.numel() * p.element_size() for p in ranker.head.parameters()) * DENSE_COPIES
    return _render(plan, dense)


def _render(plan: Plan, dense: int) -> str:
    console = Console(width=110, no_color=True)
    with console.capture() as capture:
        console.print(_table_of_tables(plan))
        console.print(_table_of_ranks(plan, dense))
    return capture.get().rstrip()


def _size(bytes_: float) -> str:
    return f"{bytes_ / GIB:.3f} GiB" if bytes_ >= GIB / 10 else f"{bytes_ / 2**20:.2f} MiB"


def _table_of_tables(plan: Plan) -> Table:
    shards: dict[str, list[Shard]] = defaultdict(list)
    for shard in plan.shards:
        shards[shard.table].append(shard)
    table = Table("table", "sharding", "ranks", "rows a shard", "dim a shard", "weights", box=None, title="Tables")
    for name, pieces in sorted(shards.items(), key=lambda item: -sum(s.weight_bytes for s in item[1])):
        ranks = sorted({s.rank for s in pieces})
        where = str(ranks[0]) if len(ranks) == 1 else f"{len(ranks)} ranks ({ranks[0]} to {ranks[-1]})"
        weights = _size(sum(s.weight_bytes for s in pieces))
        rows = max(s.rows for s in pieces)
        table.add_row(name, pieces[0].sharding, where, f"{rows:,}", str(max(s.dim for s in pieces)), weights)
    return table


def _table_of_ranks(plan: Plan, dense: int) -> Table:
    weights: dict[int, int] = defaultdict(int)
    total: dict[int, int] = defaultdict(int)
    time: dict[int, float] = defaultdict(float)
    for shard in plan.shards:
        weights[shard.rank] += shard.weight_bytes
        total[shard.rank] += shard.total_bytes
        time[shard.rank] += shard.step_ms
    cluster = plan.cluster
    ranks = range(cluster.world_size)
    mean = sum(total.values()) / cluster.world_size
    title = (
        f"Ranks: {cluster.world_size} x {_size(cluster.memory)} ({cluster.device}); "
        f"fullest over mean {max(total[r] for r in ranks) / mean:.2f}"
    )
    table = Table(
        "rank", "weights", "tables in all", "dense part", "of memory", "lookups a step", box=None, title=title
    )
    for rank in ranks[:RANKS_SHOWN]:
        share = (total[rank] + dense) / cluster.memory
        table.add_row(
            str(rank), _size(weights[rank]), _size(total[rank]), _size(dense), f"{share:.1%}", f"{time[rank]:.3f} ms"
        )
    if cluster.world_size > RANKS_SHOWN:
        table.add_row("…", *[""] * 5)
    table.caption = (
        "tables in all: weights, optimiser state, inputs and outputs. Sizes and times are the planner's estimates."
    )
    return table
