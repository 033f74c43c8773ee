"""What measuring a model's predictions costs beside making them: time and memory of the metrics.

    python benchmarks/evaluation.py --rows 5000000 --tasks 2
    python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/evaluation.py

Feeds random logits in batches, as evaluation does, then computes every metric. Times are of CPU, the sum over ranks;
memory is what the peak of the rank that needs most rises by, and what its rows take by themselves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
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
    kind: Literal["binary", "regression"] = "binary"
    """Kind of the tasks."""
    columns: tuple[Literal["users", "oracle", "weights"], ...] = ("users", "oracle")
    """What rows have beside scores, labels and their number: users, true probabilities, weights."""
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
    metrics = Metrics([Task(f"task{i}", kind=options.kind) for i in range(options.tasks)], context)
    generator = torch.Generator().manual_seed(options.seed + context.rank)
    shape, groups = (options.batch_size, options.tasks), max(1, options.rows // options.rows_per_group)
    share = options.rows // context.world_size
    for start in range(0, share, options.batch_size):
        logits = torch.randn(shape, generator=generator)
        noise = torch.rand(shape, generator=generator)
        labels = (noise < (logits - 2).sigmoid()).float() if options.kind == "binary" else logits + noise
        columns = {
            "oracle": torch.rand(shape, generator=generator) if "oracle" in options.columns else None,
            "weights": torch.rand(shape, generator=generator) + 0.1 if "weights" in options.columns else None,
            "group": torch.randint(0, groups, shape[:1], generator=generator) if "users" in options.columns else None,
        }
        row_number = torch.arange(start, start + options.batch_size) * context.world_size + context.rank
        metrics.update(logits, labels, min(share - start, options.batch_size), row_number=row_number, **columns)
    return metrics


def main() -> None:
    """Entry point."""
    options = tyro.cli(Options, description=__doc__)
    place = machine()
    with process_group("cpu") as context:
        before, start, clock = psutil.Process().memory_info().rss, time.process_time(), time.perf_counter()
        metrics = collect(options, context)
        rows, middle = psutil.Process().memory_info().rss - before, time.process_time()
        found = metrics.compute().metrics
        end, clock = time.process_time(), time.perf_counter() - clock
        collecting, computing = context.sum(torch.tensor([middle - start, end - middle], dtype=torch.float64)).tolist()
        memory = {"rows": context.max(rows), "peak": context.max(peak_resident() - before)}
        if context.is_first:
            results = {
                "machine": place,
                "ranks": context.world_size,
                "rows": found["task0"]["rows"],
                "tasks": options.tasks,
                "columns": options.columns,
                "bytes": memory,
                "seconds": clock,
                "cpu_seconds": {"collecting": collecting, "computing": computing},
            }
            values = options.rows * options.tasks
            lines = [
                ("rows collected (making them included)", collecting, 1e9 * collecting / values, memory["rows"] / 1e9),
                ("metrics computed", computing, 1e9 * computing / values, memory["peak"] / 1e9),
            ]
            body = markdown_table(["", "CPU s", "ns a row and task", "GB more than before, a rank"], lines)
            name = "_".join([f"{options.rows / 1e6:g}m", f"{options.tasks}_{options.kind}", *options.columns])
            write_results(options.out, "evaluation", name, results, body)


if __name__ == "__main__":
    main()
