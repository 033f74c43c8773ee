"""Metrics of rows in NumPy arrays, on one rank or on several that are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from recmtl.distributed.context import DistContext
from recmtl.metrics.calibration import CalibrationBins
from recmtl.metrics.collect import FAMILIES
from recmtl.metrics.names import ALL, ALWAYS, METRICS, VALUES, Bins, Values, is_wanted
from recmtl.metrics.rows import BLOCK
from recmtl.schema import Task

T = TypeVar("T")
ALONE = DistContext(0, 1, 0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
"""A process without a process group."""
CLICK = Task("click")
NUMBER = Task("number", kind="regression")
"""Predicts the logit itself."""


class ThreadContext(DistContext):
    """One of several ranks that are threads and exchange objects."""

    def __init__(self, rank: int, ranks: int, barrier: threading.Barrier, places: list[Any]) -> None:
        super().__init__(rank, ranks, rank, ranks, torch.device("cpu"), None)  # type: ignore[arg-type]
        object.__setattr__(self, "barrier", barrier)
        object.__setattr__(self, "places", places)

    def gather(self, make: Callable[[], T]) -> list[T]:
        self.places[self.rank] = make()
        self.barrier.wait()
        found = list(self.places)
        self.barrier.wait()
        return found

    def run_on_rank0(self, make: Callable[[], T]) -> T:
        return self.gather(make)[0]

    def sum_on_host(self, values: np.ndarray) -> np.ndarray:
        assert isinstance(values, np.ndarray)
        found = self.gather(lambda: values)
        assert {(part.shape, part.dtype) for part in found} == {(values.shape, values.dtype)}
        return sum(found[1:], found[0].copy())

    def exchange(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        assert len(parts) == self.world_size
        found = self.gather(lambda: parts)
        assert len({part.dtype for sent in found for part in sent}) == 1
        return np.concatenate([sent[self.rank] for sent in found])


def on_ranks(ranks: int, run: Callable[[DistContext], T]) -> list[T]:
    """What `run` gives on each of several ranks."""
    barrier, places = threading.Barrier(ranks), [None] * ranks

    def of_rank(rank: int) -> T:
        try:
            return run(ThreadContext(rank, ranks, barrier, places))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        futures = [pool.submit(of_rank, rank) for rank in range(ranks)]
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]


def measure(
    logits: np.ndarray,
    labels: np.ndarray,
    oracle: np.ndarray | None = None,
    users: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    include: Collection[str] = ALL,
    *,
    task: Task = CLICK,
    context: DistContext = ALONE,
    blocks: int = 3,
) -> tuple[Values, Bins]:
    """The metrics of one task on this rank's rows and those of others, given in some blocks."""
    columns = {"logits": (logits, np.float32), "labels": (labels, np.float32), "oracle": (oracle, np.float32)}
    columns |= {"weights": (weights, np.float32), "users": (users, np.int64), "folds": (folds, np.uint8)}
    parts = {
        name: np.array_split(np.asarray(column).astype(dtype), blocks)
        for name, (column, dtype) in columns.items()
        if column is not None
    }
    include = frozenset(include) | ALWAYS
    families = [FAMILIES[name] for name in METRICS[task.kind] if name in FAMILIES and name in include]
    values: Values = {}
    for family in [*families, CalibrationBins]:
        metric = family(task, context)
        for place in range(blocks):
            metric.update(**{name: torch.from_numpy(column[place]) for name, column in parts.items()})
        values |= metric.compute()
    return {name: values.get(name) if is_wanted(name, include) else None for name in VALUES[task.kind]}, values["bins"]


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """The AUC of float32 scores."""
    return measure(scores, labels, weights=weights, include=("auc",), blocks=len(labels) // BLOCK + 2)[0]["auc"]
