"""Measuring a model on a split."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import torch
from torch import nn

from recmtl.data.read.batch import Batch
from recmtl.data.read.prefetcher import Prefetcher
from recmtl.data.read.reader import Reader
from recmtl.distributed.context import DistContext
from recmtl.errors import Stopped
from recmtl.metrics.collect import Measured, Metrics
from recmtl.metrics.names import LOSS, Values
from recmtl.metrics.segments import SegmentColumn
from recmtl.objectives.train_module import Output
from recmtl.runtime.progress import Progress
from recmtl.schema import Task


@torch.no_grad()
def evaluate(
    model: nn.Module,
    step: Callable[[Iterator[Batch]], Output],
    reader: Reader,
    context: DistContext,
    *,
    title: str,
    include: Collection[str],
    segments: Mapping[str, SegmentColumn],
    prefetch: int,
    stop: Callable[[], bool],
) -> Measured:
    """Metrics and calibration bins of every task over every row of the reader's split once, on all ranks.

    Args:
        model: what `step` runs.
        step: runs the next batch; in evaluation mode the training pipeline skips the backward pass.
        reader: of the split.
        context: this process.
        title: what to say beside the progress.
        include: names of the metrics to measure.
        segments: columns to measure by, as `Metrics` takes them.
        prefetch: batches to decode ahead.
        stop: asked after every batch, on all ranks alike: whether to leave off.

    Raises:
        Stopped: `stop` said so.
    """
    metrics = Metrics(reader.data.tasks, context, include=include, segments=segments)
    model.eval()
    with (
        Prefetcher(reader.batches(), prefetch) as batches,
        Progress(enabled=context.is_first, timed=False) as progress,
        progress.stage(title, reader.steps, unit="step") as advance,
    ):
        for done in range(1, reader.steps + 1):
            _, _, logits, batch = step(batches)
            metrics.update(
                logits,
                batch.labels,
                batch.rows,
                oracle=batch.oracle,
                weights=batch.row_weights,
                group=batch.group,
                row_number=batch.row_number,
            )
            advance(done)
            if stop():
                raise Stopped(f"{title}: left off because of SIGTERM; the same command goes on")
    model.train()
    return metrics.compute()


def logloss_sum(metrics: dict[str, Values]) -> float | None:
    """Log loss summed over binary tasks, in nats, each as it is: runs with other weights can be compared by it.

    A task without a label adds nothing. None: no task is binary.
    """
    found = [task["logloss"] for task in metrics.values() if "logloss" in task]
    return sum(float(value or 0.0) for value in found) if found else None


def weighted_sum(tasks: Iterable[Task], losses: Mapping[str, float]) -> float:
    """Σ_t a_t L_t with the recipe's weights a, so that a task of weight 0 has no say.

    Args:
        tasks: those that are trained.
        losses: by task.
    """
    return sum(task.weight * losses[task.name] for task in tasks)


def validation_loss(tasks: Iterable[Task], metrics: Mapping[str, Values]) -> float:
    """The same of the losses that were measured; that of a task without a label is 0."""
    tasks = list(tasks)
    return weighted_sum(tasks, {task.name: metrics[task.name][LOSS[task.kind]] or 0.0 for task in tasks})
