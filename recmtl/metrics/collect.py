"""Collects every row of a split once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recmtl.distributed.context import DistContext
from recmtl.metrics.jackknife import FOLDS, folds_of
from recmtl.metrics.measure import Bins, Values, measure
from recmtl.metrics.names import ALL, SEGMENT_METRICS, SEGMENT_VALUES
from recmtl.metrics.regression import measure_numbers
from recmtl.metrics.segments import LEFT_OUT, SegmentColumn, Segments
from recmtl.models.predictions import predictions
from recmtl.objectives.losses import row_losses
from recmtl.schema import NO_USER, Task

MIN_USERS = FOLDS
"""Where there are fewer users than that, rows are the sampling units: most folds would have no user."""
NOT_OBSERVED = -1
"""What stands for a missing label of a binary task."""


class Measured(NamedTuple):
    """What was measured on a split."""

    metrics: dict[str, Values]
    """By task."""
    bins: dict[str, Bins]
    """Calibration bins by task."""
    segments: dict[str, Segments]
    """By column that metrics were asked for by."""


@dataclass
class TaskRows:
    """Rows as one task sees them."""

    logits: np.ndarray
    """float32 [n]."""
    labels: np.ndarray
    """[n], as `Metrics` keeps them."""
    oracle: np.ndarray | None = None
    """True probabilities [n]."""
    weights: np.ndarray | None = None
    """float32 [n]."""
    users: np.ndarray | None = None
    """Number of every row's user [n], negative for none."""
    folds: np.ndarray | None = None
    """uint8 [n]."""

    def take(self, rows: np.ndarray) -> TaskRows:
        """Some rows: their places, or which they are, bool [n]."""
        columns = {name: column[rows] for name, column in vars(self).items() if column is not None}
        return replace(self, **columns)

    def observed(self) -> TaskRows:
        """The rows that have a label and a weight above 0; without weights where all are the same, for they say nothing
        then and AUC is counted in integers.
        """
        known = ~np.isnan(self.labels) if self.labels.dtype == np.float32 else self.labels != NOT_OBSERVED
        if self.weights is not None:
            known &= self.weights > 0
        rows = self if known.all() else self.take(known)
        if rows.weights is not None and len(rows.weights) and rows.weights.min() == rows.weights.max():
            return replace(rows, weights=None)
        return rows

    def measure(self, task: Task, include: Collection[str]) -> tuple[Values, Bins]:
        """The metrics of a task on these rows, which `observed` gave."""
        if task.kind == "binary":
            labels = self.labels == 1
            return measure(self.logits, labels, self.oracle, self.users, self.folds, self.weights, include)
        logits, labels = torch.from_numpy(self.logits), torch.from_numpy(self.labels)
        predicted, losses = predictions(logits[:, None], [task])[:, 0], row_losses(logits, labels, task)
        return measure_numbers(predicted.numpy(), self.labels, losses.numpy(), self.folds, self.weights, include)


def _users(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] to the user of every row, counted from 0, −1 for none, int32 [n]; and what each user was called."""
    found = pa.array(group, mask=group == NO_USER).dictionary_encode()
    return found.indices.fill_null(-1).to_numpy(), found.dictionary.to_numpy()


class Metrics:
    """Collects logits and labels on the host and measures them on rank 0.

    On its own rank a row takes 5 bytes a task, 4 for a true probability, 4 for a weight, 8 for its group and 1 for its
    fold; where a task's labels are numbers 3 more a task, and 8 for its number where there are segments. On rank 0 it
    takes some 60 while a task is measured.

    Args:
        tasks: in the order of the logits.
        context: this process and the others.
        include: names of the metrics to measure (`recmtl.metrics.names`), where the data has what they need.
        segments: on the first rank the columns to measure by, by name; on others the same names are enough.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        context: DistContext,
        *,
        include: Collection[str] = ALL,
        segments: Mapping[str, SegmentColumn | None] | None = None,
    ) -> None:
        self.tasks, self.context, self.include, self.segments = tasks, context, include, segments or {}
        self._binary = all(task.kind == "binary" for task in tasks)
        self._of_tasks: dict[str, list[Tensor]] = {}
        """Batches of [T, rows] by name."""
        self._of_rows: dict[str, list[Tensor]] = {}
        """Batches of [rows] by name."""

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        rows: int,
        *,
        oracle: Tensor | None = None,
        weights: Tensor | None = None,
        group: Tensor | None = None,
        row_number: Tensor | None = None,
    ) -> None:
        """Add a batch; those after the first `rows` rows are padding.

        Args:
            logits: [B, T].
            labels: [B, T], NaN where there is none.
            rows: how many are real.
            oracle: true probabilities [B, T], NaN where unknown.
            weights: of the rows for each task [B, T]; None: all 1.
            group: user of every row [B], `NO_USER` for none.
            row_number: place of every row in the split [B]; None: metrics without standard errors and segments.
        """
        columns = {"logits": logits.float(), "labels": labels, "oracle": oracle, "weights": weights}
        given = {name: column for name, column in columns.items() if column is not None}
        # Together, as every copy makes the host wait for a GPU.
        together = torch.cat([column[:rows] for column in given.values()], dim=1).cpu().T
        for name, part in zip(given, together.split(len(self.tasks)), strict=True):
            if name == "labels" and self._binary:
                kept = part.nan_to_num(NOT_OBSERVED).to(torch.int8)
            else:
                kept = part.contiguous()
            self._of_tasks.setdefault(name, []).append(kept)
        if group is not None:
            self._of_rows.setdefault("group", []).append(group[:rows].cpu())
        if row_number is not None:
            numbers = row_number[:rows].cpu()
            self._of_rows.setdefault("fold", []).append(torch.from_numpy(folds_of(numbers.numpy())))
            if self.segments:
                self._of_rows.setdefault("number", []).append(numbers)

    def compute(self) -> Measured:
        """What is measured over the rows of all ranks, the same on every rank."""
        group, folds, numbers = (self._gather(self._of_rows.get(name, [])) for name in ("group", "fold", "number"))
        users = None
        if group is not None:
            users, names = _users(group)
            if folds is not None and len(names) >= MIN_USERS:
                # Rows of one user resemble each other: a fold has all of a user's rows or none.
                folds = np.where(users < 0, folds, folds_of(names)[users])
        rows_of = {}
        if numbers is not None:
            rows_of = {name: column.rows(numbers) for name, column in self.segments.items() if column is not None}
        found = Measured({}, {}, {name: _segments(self.segments[name], rows) for name, rows in rows_of.items()})
        for i, task in enumerate(self.tasks):
            columns = {name: self._gather([part[i] for part in parts]) for name, parts in self._of_tasks.items()}
            logits, labels, oracle, weights = map(columns.get, ("logits", "labels", "oracle", "weights"))
            if logits is None or labels is None:
                continue
            rows = TaskRows(logits, labels, oracle, weights, users if "gauc" in self.include else None, folds)
            found.metrics[task.name], found.bins[task.name] = rows.observed().measure(task, self.include)
            for name, segments in rows_of.items():
                for value, inside in zip(found.segments[name]["values"], segments, strict=True):
                    values, _ = rows.take(inside).observed().measure(task, SEGMENT_METRICS)
                    value["tasks"][task.name] = {key: values[key] for key in values if key in SEGMENT_VALUES}
        return self.context.run_on_rank0(lambda: found)

    def _gather(self, parts: list[Tensor]) -> np.ndarray | None:
        """Rows of all ranks on rank 0; None elsewhere, and where the data has no such column."""
        rows = self.context.gather_rows(torch.cat(parts)) if parts else None
        return None if rows is None else rows.numpy()


def _segments(column: SegmentColumn | None, rows: list[np.ndarray]) -> Segments:
    """The segments of a column before their tasks are measured."""
    assert column is not None
    values = [{"value": value, "rows": len(of), "tasks": {}} for value, of in zip(column.values, rows, strict=True)]
    return {"values": values, "left_out": column.left_out, "left_out_rows": int((column.codes == LEFT_OUT).sum())}
