"""The rows that metrics are measured on: every rank keeps its own, in blocks, and no rank ever sees all of them.

`RowMetric` is the base of every metric. Its states are the columns of the rows, and all metrics of a task share them:
they are one compute group of a `torchmetrics.MetricCollection`, so that the rows lie in memory once. The default
synchronisation of torchmetrics, which gathers all rows on every rank, is off. In its place each `measure` exchanges
what it needs over the ranks' hosts:

- sums (`DistContext.sum_on_host`): log loss, errors, counts by bin and by fold;
- ranges of values (`recmtl.metrics.ranges`): AUC, XAUC, the edges of calibration bins;
- rows by the hash of their user (`recmtl.metrics.gauc`): the AUC within users.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from recmtl.distributed.context import DistContext
from recmtl.metrics.jackknife import FOLDS
from recmtl.metrics.names import Values
from recmtl.metrics.units import SamplingUnits
from recmtl.models.predictions import predictions
from recmtl.schema import Task

BLOCK = 2**18
"""Rows of a block: what is worked on in float64 at once."""
NOT_OBSERVED = -1
"""What stands for a missing label of a binary task."""


@dataclass(frozen=True)
class Block:
    """Some rows of this rank as one task sees them."""

    logits: np.ndarray
    """float32 [n]."""
    labels: np.ndarray
    """int8 [n], 0, 1 or `NOT_OBSERVED`, of a binary task; else float32 [n], NaN where missing."""
    weights: np.ndarray | None = None
    """float32 [n]; None: all 1."""
    oracle: np.ndarray | None = None
    """True probabilities, float32 [n], NaN where unknown."""
    users: np.ndarray | None = None
    """int64 [n], `NO_USER` for none."""
    folds: np.ndarray | None = None
    """uint8 [n]; None: no standard errors."""

    def __len__(self) -> int:
        return len(self.logits)

    def take(self, inside: np.ndarray) -> Block:
        """The rows of a mask, bool [n]; without a copy where it holds all."""
        if inside.all():
            return self
        columns = {name: column[inside] for name, column in vars(self).items() if column is not None}
        return replace(self, **columns)

    def mass(self) -> np.ndarray:
        """Weight of each row, float64 [n]."""
        return np.ones(len(self)) if self.weights is None else self.weights.astype(np.float64)

    def folds_or_one(self) -> np.ndarray:
        """The folds; all in one, of which there is no error, where there are none."""
        return np.zeros(len(self), np.uint8) if self.folds is None else self.folds

    def predictions(self, task: Task) -> np.ndarray:
        """In the label's unit, float32 [n]."""
        return predictions(torch.from_numpy(self.logits)[:, None], [task])[:, 0].numpy()


class Rows:
    """The rows of all ranks that have a label and a weight above 0: this rank's blocks of them, and what all agree on.

    Where all weights are the same they say nothing and are dropped, so that pairs are counted in integers.

    Args:
        context: this process and the others, all of which make one.
        blocks: of this rank's rows.
    """

    def __init__(self, context: DistContext, blocks: list[Block]) -> None:
        self.context = context
        found = [block.weights for block in blocks if block.weights is not None and len(block)]
        weights = [(column.min().item(), column.max().item()) for column in found]
        counted = context.gather(lambda: (sum(map(len, blocks)), weights and _limits(weights)))
        self.count = sum(rows for rows, _ in counted)
        """Rows of all ranks."""
        limits = [limits for _, limits in counted if limits]
        self.weighted = bool(limits) and len(set(_limits(limits))) == 2
        """Whether the rows weigh differently."""
        self.blocks = blocks if self.weighted else [replace(block, weights=None) for block in blocks]

    def have(self, column: str) -> bool:
        """Whether the rows of any rank have a column of `Block`; all ask together."""
        here = any(getattr(block, column) is not None and len(block) for block in self.blocks)
        return any(self.context.gather(lambda: here))

    def mass(self) -> float:
        """Weight of the rows of all ranks, which ask together."""
        if not self.weighted:
            return self.count
        return self.context.sum_on_host(np.array([sum(block.mass().sum() for block in self.blocks)], np.float64)).item()

    def label_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest label of every fold over all ranks, which ask together, each [FOLDS]; ∞ and −∞ of a fold
        without rows.
        """
        low, high = np.full(FOLDS, np.inf), np.full(FOLDS, -np.inf)
        for block in self.blocks:
            np.minimum.at(low, block.folds_or_one(), block.labels)
            np.maximum.at(high, block.folds_or_one(), block.labels)
        lows, highs = zip(*self.context.gather(lambda: (low, high)), strict=True)
        return np.min(lows, axis=0), np.max(highs, axis=0)


def _limits(limits: list[tuple[float, float]]) -> tuple[float, float]:
    """Smallest and largest of several pairs of them."""
    return min(low for low, _ in limits), max(high for _, high in limits)


class RowMetric(Metric):
    """A metric of one task that is measured on all its rows once.

    Args:
        task: whose logits and labels they are.
        context: this process and the others; all compute together.
        units: what the folds of standard errors are made of; None: the folds are as `update` is given them.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False

    COLUMNS = ("logits", "labels", "weights", "oracle", "users", "folds", "user_folds", "segments")
    """Names of the states: lists with one tensor [n] for every block."""

    def __init__(self, task: Task, context: DistContext, units: SamplingUnits | None = None) -> None:
        # The cache would outlive an update, which reaches the first metric of a compute group alone.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.task, self.context, self.units = task, context, units
        for name in self.COLUMNS:
            self.add_state(name, [], dist_reduce_fx=None)

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        weights: Tensor | None = None,
        oracle: Tensor | None = None,
        users: Tensor | None = None,
        folds: Tensor | None = None,
        user_folds: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> None:
        """Keep a block of rows, of the order of `BLOCK`, in host memory. A column is given every time or never.

        Args:
            logits: float32 [n].
            labels: [n], NaN where there is none.
            weights: float32 [n]; None: all 1.
            oracle: true probabilities, float32 [n], NaN where unknown.
            users: int64 [n], `NO_USER` for none; without, there is no AUC within users.
            folds: uint8 [n]; without, there are no standard errors.
            user_folds: the same where users are the sampling units, uint8 [n].
            segments: segment of every row by each column, int8 [C, n].
        """
        if self.task.kind == "binary":
            labels = labels.nan_to_num(NOT_OBSERVED).to(torch.int8)
        columns = (logits, labels, weights, oracle, users, folds, user_folds, segments)
        for name, column in zip(self.COLUMNS, columns, strict=True):
            if column is not None:
                getattr(self, name).append(column)

    def compute(self) -> Values:
        """The metric's values over the rows of all ranks, the same on every rank."""
        return self.measure(self.observed())

    @abstractmethod
    def measure(self, rows: Rows) -> Values:
        """The metric's values over some rows of all ranks, which measure them together."""

    def observed(self, segment: tuple[int, int] | None = None) -> Rows:
        """The rows that have a label and a weight above 0.

        Args:
            segment: place of a column in the rows of `segments`, and the segment in it; None: all rows.
        """
        return Rows(self.context, list(self._observed(segment)))

    def _observed(self, segment: tuple[int, int] | None) -> Iterator[Block]:
        states: dict[str, list[Tensor]] = {field.name: getattr(self, field.name) for field in fields(Block)}
        segments: list[Tensor] = self.segments  # type: ignore[assignment]
        if self.units is not None and self.units.are_users():
            states["folds"] = self.user_folds  # type: ignore[assignment]
        for place, logits in enumerate(states["logits"]):
            if not len(logits):  # of a rank without rows, which does not know the columns either
                continue
            block = Block(**{name: parts[place].numpy() for name, parts in states.items() if parts})
            known = block.labels != NOT_OBSERVED if self.task.kind == "binary" else ~np.isnan(block.labels)
            if block.weights is not None:
                known &= block.weights > 0
            if segment is not None:
                column, code = segment
                known &= segments[place][column].numpy() == code
            yield block.take(known)
