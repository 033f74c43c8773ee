"""What a training step of several presets costs, taken in turns in one process: a ratio to the first one.

python benchmarks/steps.py aitm stem stem:model.cross_task=false --dim 32

A preset may be followed by settings of its own, `NAME:key=value:key=value`, with values as in TOML. All train on the
same batches, held in memory: reading them, which costs all the same, is left out.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import tyro
from common import RESULTS, Timing, machine, markdown_table, ratios, timing, write_results
from variants import configure, names
from workload import write_workload

from recmtl.distributed.context import process_group
from recmtl.schema import Dataset
from recmtl.training.session import TrainSession

BATCHES = 32
"""Batches held in memory."""


@dataclass
class Options:
    """Measure steps."""

    variants: tyro.conf.Positional[tuple[str, ...]]
    """Presets or TOML files, each with settings of its own or none; times are relative to the first."""
    data: Path | None = None
    """Prepared folder; none: one in MerRec's shape with `embedding_rows`."""
    examples: int = 400_000
    """Training rows to make."""
    embedding_rows: int = 7_000_000
    """Rows of all embedding tables together, one copy each."""
    batch_size: int = 4096
    """Rows in a batch."""
    dim: int = 32
    """Embedding dimension."""
    rounds: int = 9
    """Turns; medians are reported."""
    steps: int = 10
    """Steps of a turn."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = RESULTS
    """Folder for the results."""


def seconds(session: TrainSession, batches: itertools.cycle, steps: int) -> Timing:
    """Time of one step, after two that fill the pipeline."""
    for _ in range(2):
        session.run_batch(batches)
    return timing(lambda: session.run_batch(batches), steps, session.context.device)


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    shared = {
        "embedding.dim": options.dim,
        "training.batch_size": options.batch_size,
        "training.device": options.device,
    }
    configs = {variant: configure(variant, shared) for variant in options.variants}
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder) / "data"
        if options.data is None:
            write_workload(data, options.examples, options.embedding_rows)
        dataset = Dataset.load(data)
        with process_group(next(iter(configs.values())).training.device) as context:
            engines = {v: TrainSession(c, data, dataset, dataset.tasks, context) for v, c in configs.items()}
            for engine in engines.values():
                engine.draw_tables()
            memory = list(next(iter(engines.values())).readers["train"].batches(stop=BATCHES))
            feeds = {variant: itertools.cycle(memory) for variant in engines}
            times: dict[str, list[Timing]] = {variant: [] for variant in engines}
            for turn in range(options.rounds + 1):
                for variant in list(engines)[:: 1 if turn % 2 else -1]:
                    took = seconds(engines[variant], feeds[variant], options.steps)
                    if turn:  # the first one warms up
                        times[variant].append(took)
            sizes = {v: sum(p.numel() for p in e.model.module.dense_parameters()) for v, e in engines.items()}
    first = times[options.variants[0]]
    rows = []
    for variant, taken in times.items():
        step = median(clock for clock, _ in taken)
        rows.append((variant, sizes[variant], options.batch_size / step, 1000 * step, *ratios(taken, first)))
    body = (
        f"{sum(table.rows for table in dataset.tables):,} embedding rows a copy of dimension {options.dim}, "
        f"batch {options.batch_size:,}, {torch.get_num_threads()} threads; "
        f"medians of {options.rounds} turns of {options.steps} steps.\n\n"
        + markdown_table(
            ("variant", "dense parameters", "examples/s", "ms a step", "times the first", "by CPU time"), rows
        )
    )
    relative = {variant: {"clock": clock, "cpu": cpu} for variant, _, _, _, clock, cpu in rows}
    results = {"machine": place, "seconds_and_cpu_seconds": times, "times_the_first": relative}
    write_results(options.out, "steps", names(options.variants), results, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
