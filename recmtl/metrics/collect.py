"""Every metric of every task on every row of a split once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from recmtl.distributed.context import DistContext
from recmtl.metrics.auc import AUC, OracleAUC
from recmtl.metrics.calibration import CalibrationBins
from recmtl.metrics.gauc import GroupedAUC
from recmtl.metrics.logloss import LogLoss
from recmtl.metrics.names import ALL, ALWAYS, METRICS, VALUES, Bins, Values, is_wanted
from recmtl.metrics.regression import Errors
from recmtl.metrics.rows import BLOCK, RowMetric
from recmtl.metrics.segments import BySegment, SegmentColumn, Segments
from recmtl.metrics.units import SamplingUnits
from recmtl.metrics.xauc import XAUC
from recmtl.schema import Task

FAMILIES: dict[str, type[RowMetric]] = {
    "auc": AUC,
    "gauc": GroupedAUC,
    "oracle_auc": OracleAUC,
    "logloss": LogLoss,
    "loss": Errors,
    "xauc": XAUC,
}
"""What measures a metric, by its name; those that are not here come with the log loss or the loss."""


class Measured(NamedTuple):
    """What was measured on a split."""

    metrics: dict[str, Values]
    """By task."""
    bins: dict[str, Bins]
    """Calibration bins by task."""
    segments: dict[str, Segments]
    """By column that metrics were asked for by."""


class Metrics:
    """The metrics of all tasks: gives them this rank's rows in blocks, and says together what they measure.

    On its own rank a row takes 5 bytes a task, 4 for a true probability, 4 for a weight, 8 for its user where the AUC
    within users is asked for, 2 for its folds and 1 for each column of segments; where a task's labels are numbers 3
    more a task. While metrics are measured, some 8 more, or 12 where rows weigh (`recmtl.metrics.ranges`).

    Args:
        tasks: in the order of the logits.
        context: this process and the others.
        include: names of the metrics to measure (`recmtl.metrics.names`), where the data has what they need.
        segments: the columns to measure by, by name.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        context: DistContext,
        *,
        include: Collection[str] = ALL,
        segments: Mapping[str, SegmentColumn] | None = None,
    ) -> None:
        self.tasks, self.context, self.segments = tasks, context, segments or {}
        self.include = frozenset(include) | ALWAYS
        self._units = SamplingUnits(context)
        self._metrics = {task.name: self._collection(task) for task in tasks}
        self._waiting: dict[str, list[Tensor]] = {}
        """Batches of [T, rows] or [rows] by name, until they are a block."""
        self._rows_waiting = 0
        self._has_rows = False
        self._in_segment = {name: np.zeros(len(column.values) + 1, np.int64) for name, column in self.segments.items()}
        """This rank's rows in each segment, and last those that are left out."""

    def _collection(self, task: Task) -> MetricCollection:
        wanted = [name for name in METRICS[task.kind] if name in self.include and name in FAMILIES]
        metrics: dict[str, RowMetric] = {name: FAMILIES[name](task, self.context, self._units) for name in wanted}
        metrics["bins"] = CalibrationBins(task, self.context, self._units)
        if self.segments:
            metrics["segments"] = BySegment(task, self.context, self._units, self.segments)
        # One group: all have the same states, and the rows lie in memory once.
        return MetricCollection(dict(metrics), compute_groups=[list(metrics)])

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
            oracle: true probabilities [B, T], NaN where unknown; on the host.
            weights: of the rows for each task [B, T]; None: all 1.
            group: user of every row [B], `NO_USER` for none; on the host.
            row_number: place of every row in the split [B], on the host; None: metrics without standard errors and
                segments.
        """
        columns = {"logits": logits.float(), "labels": labels.float(), "weights": weights}
        given = {name: column for name, column in columns.items() if column is not None}
        # Together, as every copy makes the host wait for a GPU.
        together = torch.cat([column[:rows] for column in given.values()], dim=1).cpu().T
        parts = dict(zip(given, together.split(len(self.tasks)), strict=True))
        on_host = {"oracle": None if oracle is None else oracle.T, "users": group, "row_number": row_number}
        parts |= {name: column[..., :rows] for name, column in on_host.items() if column is not None}
        for name, part in parts.items():
            self._waiting.setdefault(name, []).append(part)
        self._rows_waiting += rows
        if self._rows_waiting >= BLOCK:
            self._add_block()

    def compute(self) -> Measured:
        """What is measured over the rows of all ranks, the same on every rank."""
        if self._waiting:
            self._add_block()
        if not any(self.context.gather(lambda: self._has_rows)):
            return Measured({}, {}, {})
        if not self._has_rows:
            none = torch.zeros(len(self.tasks), 0)
            self._waiting = {"logits": [none], "labels": [none]}
            self._add_block()
        found = Measured({}, {}, {name: self._segment_counts(name) for name in self.segments})
        for task in self.tasks:
            values = self._metrics[task.name].compute()
            wanted = {name: is_wanted(name, self.include) for name in VALUES[task.kind]}
            found.metrics[task.name] = {name: values.get(name) if says else None for name, says in wanted.items()}
            found.bins[task.name] = values["bins"]
            for name, of_segments in values.get("segments", {}).items():
                for segment, of_segment in zip(found.segments[name]["values"], of_segments, strict=True):
                    segment["tasks"][task.name] = of_segment
        # Sums are the same on all ranks, but what processors of different kinds make of them may not be.
        return self.context.run_on_rank0(lambda: found)

    def _add_block(self) -> None:
        """Hand what waits on to the metrics."""
        columns = {name: torch.cat(parts, dim=-1) for name, parts in self._waiting.items()}
        self._waiting, self._rows_waiting, self._has_rows = {}, 0, True
        users, row_number = columns.pop("users", None), columns.pop("row_number", None)
        of_rows = {}
        if row_number is not None:
            folds = self._units.folds(None if users is None else users.numpy(), row_number.numpy())
            of_rows = dict(zip(("folds", "user_folds"), map(torch.from_numpy, folds), strict=True))
            if self.segments:
                of_rows["segments"] = self._codes(row_number.numpy())
        if users is not None and "gauc" in self.include:
            of_rows["users"] = users
        for place, task in enumerate(self.tasks):
            of_task = {name: column[place] for name, column in columns.items()}
            self._metrics[task.name].update(**of_task, **of_rows)

    def _codes(self, row_number: np.ndarray) -> Tensor:
        """The segment of some rows by each column, int8 [C, n]; counts them."""
        codes = np.stack([column.codes[row_number] for column in self.segments.values()])
        for counts, of_column in zip(self._in_segment.values(), codes, strict=True):
            counts += np.bincount(of_column % len(counts), minlength=len(counts))  # −1 counts as the last
        return torch.from_numpy(codes)

    def _segment_counts(self, name: str) -> Segments:
        """The segments of a column before their tasks are measured."""
        column, (*counts, left_out) = self.segments[name], self.context.sum_on_host(self._in_segment[name]).tolist()
        values = [{"value": value, "rows": of, "tasks": {}} for value, of in zip(column.values, counts, strict=True)]
        return {"values": values, "left_out": column.left_out, "left_out_rows": left_out}
