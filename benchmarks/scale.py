"""What MerRec, six months of it and a hundred times that need on 1 to 512 GPUs: on paper, with TorchRec's planner.

    python benchmarks/scale.py --page docs/scale.md

For every number of GPUs: how the tables are cut, the memory of the fullest rank, how even the ranks are, a step's time
by part, and the widest embeddings that fit. Nothing is trained; the page says what is assumed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro
from common import RESULTS, machine, write_results
from scale_estimate import Estimate
from scale_page import figure, page, sections
from torch.utils.flop_counter import FlopCounterMode
from variants import configure, names
from workload import SMALL, merrec_shaped, merrec_tables

from recmtl.config import Config
from recmtl.distributed.memory import trace_activations
from recmtl.distributed.oom import MemoryEstimate
from recmtl.distributed.plan import Cluster, Plan
from recmtl.distributed.replicas import gradient_bytes, lookup_bytes
from recmtl.errors import UserError
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset

WORKLOADS = {
    "the month": {"user_id": 2_770_000, "session_id": 4_200_000, "product": 914_000},
    "six months": {"user_id": 5_600_000, "session_id": 25_200_000, "product": 83_000_000},
    "100 × six months": {"user_id": 560_000_000, "session_id": 2_520_000_000, "product": 8_300_000_000},
}
"""Rows of the tables that grow; the others are as in MerRec's month."""

MEMORY = 80 * 10**9
"""Of an H100, whose bandwidths are the defaults of `Cluster`."""
DENSE_FLOPS = 0.5 * 67e12
"""Float32 outside tensor cores, half of the peak."""
GPUS_PER_NODE = 8
WIDEST = 1024
"""Columns of the widest rows tried."""


@dataclass
class Options:
    """Plan on paper."""

    preset: str = "merrec_mmoe"
    """A preset or TOML file, with settings of its own or none: `NAME:key=value:key=value`."""
    gpus: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    """Numbers of GPUs."""
    batch_size: int = 4096
    """Rows in one GPU's batch."""
    page: Path | None = None
    """Markdown page to write, with its plot beside it."""
    out: Path = RESULTS
    """Folder for the results."""


def fit(config: Config, dataset: Dataset, cluster: Cluster, dim: int) -> MemoryEstimate | None:
    """A plan with embeddings of `dim` columns, and every rank's memory; None where they do not fit."""
    try:
        wider = replace(config, embedding=replace(config.embedding, dim=dim))
        needed = MemoryEstimate.from_config(wider, dataset, cluster)
    except UserError:
        return None
    return needed if needed.memory[needed.fullest].total <= cluster.memory else None


def largest_dim(config: Config, dataset: Dataset, cluster: Cluster) -> int:
    """Columns of the widest embeddings that fit, `WIDEST` at most, found by halving; 0 where none do."""
    fits, too_wide, middle = 0, WIDEST // 4 + 1, WIDEST // 4
    while too_wide - fits > 1:
        if fit(config, dataset, cluster, 4 * middle):
            fits = middle
        else:
            too_wide = middle
        middle = (fits + too_wide) // 2
    return 4 * fits


def estimate(config: Config, dataset: Dataset, gpus: int, batch_size: int) -> Estimate:
    """One workload on one number of GPUs."""
    local = min(gpus, GPUS_PER_NODE)
    cluster = Cluster(gpus, local, "cuda", MEMORY)
    config = replace(config, training=replace(config.training, batch_size=batch_size * gpus))
    start = time.process_time()
    needed = fit(config, dataset, cluster, config.embedding.dim)
    seconds = time.process_time() - start
    largest = largest_dim(config, dataset, cluster)
    if needed is None:
        return Estimate(gpus, largest)
    parts, imbalance = slowest(needed.plan)
    tables = [part.weights + part.states for part in needed.memory]
    return Estimate(
        gpus,
        largest,
        needed.plan.table_types(),
        asdict(needed.memory[needed.fullest]),
        max(tables) * gpus / sum(tables),
        imbalance,
        {**parts, **dense_ms(TrainModule.from_config(config, dataset, dataset.tasks), cluster, batch_size)},
        seconds,
    )


def slowest(plan: Plan) -> tuple[dict[str, float], float]:
    """Times of the rank that takes longest, by part, in ms, and its time over the mean."""
    times: list[Counter[str]] = [Counter() for _ in range(plan.cluster.world_size)]
    for shard in plan.shards:
        times[shard.rank].update(shard.parts_ms)
    totals = [sum(ms for part, ms in rank.items() if part != "ids") for rank in times]
    parts = times[max(range(len(totals)), key=totals.__getitem__)]
    return dict(parts), max(totals) * len(totals) / sum(totals)


def dense_ms(train_module: TrainModule, cluster: Cluster, batch_size: int) -> dict[str, float]:
    """Times of the dense part: its products, and the exchange of its gradients in a ring."""
    with FlopCounterMode(display=False) as counter:
        trace_activations(train_module, batch_size)
    gradients = sum(p.numel() * p.element_size() for p in train_module.dense_parameters())
    bandwidth = cluster.node_bandwidth if cluster.world_size <= GPUS_PER_NODE else cluster.network_bandwidth
    ring = 2 * gradients * (cluster.world_size - 1) / cluster.world_size / bandwidth
    return {"dense": 1000 * counter.get_total_flops() / DENSE_FLOPS, "all-reduce": 1000 * ring}


def workloads() -> Iterable[tuple[str, Dataset]]:
    """Names and datasets, on paper."""
    for name, large in WORKLOADS.items():
        sizes = {table: large.get(table, SMALL.get(table, 6)) for table in merrec_tables()}
        yield name, merrec_shaped(sizes, 100_000_000)


def replicated(config: Config, dataset: Dataset, sharding: dict[str, str], batch_size: int) -> dict[str, float]:
    """Which tables are replicated, and the bytes that a GPU sends for them a step, in MB, beside what it would send."""
    embeddings = RankingModel.from_config(config, dataset, dataset.tasks).embeddings
    tables = [table for table in embeddings.tables if sharding[table.name] == "data_parallel"]
    return {
        "count": len(tables),
        "rows": max((table.num_embeddings for table in tables), default=0),
        "gradients": sum(map(gradient_bytes, tables)) / 1e6,
        "lookups": sum(lookup_bytes(table, embeddings.lengths, batch_size) for table in tables) / 1e6,
    }


def main(options: Options) -> None:
    """Plan, print and write."""
    place = machine()
    config = configure(options.preset, {})
    found: dict[str, list[Estimate]] = {}
    for name, dataset in workloads():
        for gpus in options.gpus:
            found.setdefault(name, []).append(estimate(config, dataset, gpus, options.batch_size))
            print(f"{name}, {gpus} GPUs: planned", flush=True)
    body = sections(found, WORKLOADS, options.batch_size)
    results = {
        "machine": place,
        "preset": options.preset,
        "batch_size": options.batch_size,
        "workloads": WORKLOADS,
        "estimates": {name: [asdict(estimate) for estimate in estimates] for name, estimates in found.items()},
    }
    write_results(options.out, "scale", names((options.preset,)), results, body)
    if options.page:
        name, dataset = next(iter(workloads()))
        most = found[name][-1]
        spared = replicated(config, dataset, most.sharding or {}, options.batch_size)
        plot = options.page.with_suffix(".svg")
        figure(found, MEMORY, plot)
        text = page(
            options.preset,
            options.batch_size,
            config.sharding.reserve,
            WIDEST,
            place["command"],
            {"name": name, "gpus": most.gpus, **spared},
            body,
            plot.name,
        )
        options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
