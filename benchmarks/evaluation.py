"""What measuring a model's predictions costs beside making them: time and memory of the metrics.

    python benchmarks/evaluation.py --rows 5000000 --tasks 2
    python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/evaluation.py

Feeds random logits in batches, as evaluation does, then computes every metric. Times are of CPU, the sum over ranks;
memory is what the first rank's peak rises by.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from common import RESULTS, machine, markdown_table, write_results

from recmtl.distributed.context import DistContext, process_group
from recmtl.metrics.collect import Metrics
from recmtl.schema import Task
from recmtl.training.results import peak_resident


@dataclass
class Options:
    """How much to measure."""

    rows: int = 5_000_000
    """Rows on all ranks."""
    tasks: int = 2
    """Tasks."""
    rows_per_group: int = 30
    """Rows of a user, for the AUC within users."""
    batch_size: int = 4096
    """Rows in a batch."""
    seed: int = 0
    """Seed of the predictions."""
    out: Path = RESULTS
    """Folder for the results."""


def collect(options: Options, context: DistContext) -> Metrics:
    """Feed this rank's share of the rows."""
    metrics = Metrics([Task(f"task{i}") for i in range(options.tasks)], context)
    generator = torch.Generator().manual_seed(options.seed + context.rank)
    shape, groups = (options.batch_size, options.tasks), max(1, options.rows // options.rows_per_group)
    left = options.rows // context.world_size
    while left > 0:
        logits = torch.randn(shape, generator=generator)
        labels = (torch.rand(shape, generator=generator) < (logits - 2).sigmoid()).float()
        oracle = torch.rand(shape, generator=generator)
        group = torch.randint(0, groups, shape[:1], generator=generator)
        row_number = torch.arange(left, left + options.batch_size)
        rows = min(left, options.batch_size)
        metrics.update(logits, labels, rows, oracle=oracle, group=group, row_number=row_number)
        left -= options.batch_size
    return metrics


def main() -> None:
    """Entry point."""
    options = tyro.cli(Options, description=__doc__)
    place = machine()
    with process_group("cpu") as context:
        before, start = peak_resident(), time.process_time()
        metrics = collect(options, context)
        collected, middle = peak_resident(), time.process_time()
        found = metrics.compute().metrics
        end = time.process_time()
        collecting, computing = context.sum(torch.tensor([middle - start, end - middle], dtype=torch.float64)).tolist()
        if context.is_first:
            results = {
                "machine": place,
                "ranks": context.world_size,
                "rows": found["task0"]["rows"],
                "tasks": options.tasks,
                "bytes": {"collected": collected - before, "peak": peak_resident() - before},
                "cpu_seconds": {"collecting": collecting, "computing": computing},
            }
            lines = [
                ("rows collected (making them included)", collecting, (collected - before) / 1e9),
                ("metrics computed", computing, (peak_resident() - before) / 1e9),
            ]
            body = markdown_table(["", "CPU s", "GB more than before"], lines)
            write_results(options.out, "evaluation", f"{options.tasks}_tasks", results, body)


if __name__ == "__main__":
    main()
