"""``recmtl plan``: the sharding plan and the memory of every rank, on paper."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recmtl.config import Config
from recmtl.distributed.memory import Memory
from recmtl.distributed.oom import MemoryEstimate, show_gib
from recmtl.distributed.plan import GIB, Cluster, Plan, Shard
from recmtl.errors import UserError
from recmtl.schema import Dataset

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
        UserError: the run does not fit, or there are more ranks than rows to deal out to them.
    """
    streams = min(config.reader.streams, config.training.batch_size)
    if world_size > streams:  # as the reader says
        raise UserError(
            f"reader.streams and training.batch_size: at least the number of ranks ({world_size}), not {streams}"
        )
    cluster = Cluster(world_size, min(world_size, ranks_per_node), device, int(hbm_gib * GIB))
    estimate = MemoryEstimate.from_config(config, Dataset.load(data), cluster)
    estimate.check()
    return _render(estimate)


def _render(estimate: MemoryEstimate) -> str:
    console = Console(width=152, no_color=True)
    with console.capture() as capture:
        console.print(_table_of_tables(estimate.plan))
        console.print(_table_of_ranks(estimate))
    return capture.get().rstrip()


def _table_of_tables(plan: Plan) -> Table:
    shards: dict[str, list[Shard]] = defaultdict(list)
    for shard in plan.shards:
        shards[shard.table].append(shard)
    table = Table("table", "sharding", "ranks", "rows a shard", "dim a shard", "weights", box=None, title="Tables")
    for name, pieces in sorted(shards.items(), key=lambda item: -sum(s.weight_bytes for s in item[1])):
        ranks = sorted({s.rank for s in pieces})
        where = str(ranks[0]) if len(ranks) == 1 else f"{len(ranks)} ranks ({ranks[0]} to {ranks[-1]})"
        weights = show_gib(sum(s.weight_bytes for s in pieces))
        rows = max(s.rows for s in pieces)
        table.add_row(name, pieces[0].sharding, where, f"{rows:,}", str(max(s.dim for s in pieces)), weights)
    return table


def _table_of_ranks(estimate: MemoryEstimate) -> Table:
    plan, memory = estimate.plan, estimate.memory
    time: dict[int, float] = defaultdict(float)
    for shard in plan.shards:
        time[shard.rank] += shard.step_ms
    cluster = plan.cluster
    tables = [part.weights + part.states + part.lookups for part in memory]
    mean = sum(tables) / cluster.world_size
    uneven = f"; fullest over mean {max(tables) / mean:.2f}" if mean else ""
    title = f"Ranks: {cluster.world_size} x {show_gib(cluster.memory)} ({cluster.device}){uneven}"
    parts = [field.name for field in fields(Memory)]
    table = Table("rank", *parts, "in all", "of memory", "lookups a step", box=None, title=title)
    for rank, part in enumerate(memory[:RANKS_SHOWN]):
        sizes = [show_gib(getattr(part, name)) for name in parts]
        share = f"{part.total / cluster.memory:.1%}"
        table.add_row(str(rank), *sizes, show_gib(part.total), share, f"{time[rank]:.3f} ms")
    if cluster.world_size > RANKS_SHOWN:
        table.add_row("…", *[""] * (len(parts) + 3))
    table.caption = (
        "states: of the tables' optimiser. lookups: ids and embeddings, of sequences one for every item. activations: "
        "with histories as long as the longest training row's. holes: what the heap loses around activations. "
        "staging: what a checkpoint is written from. Peak of a training step: the rows that evaluation "
        "collects, pcgrad's passes and what PyTorch's allocator on GPUs loses come on top. Times are the planner's "
        "estimates."
    )
    if cluster.device == "cuda":
        table.caption += (
            f" Beside these, a checkpoint needs up to {show_gib(max(estimate.staging))} a rank of its host."
        )
    return table
