"""The rows of a split told apart by the value of one column, as metrics are asked for by segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recmtl.distributed.context import DistContext
from recmtl.metrics.auc import AUC
from recmtl.metrics.logloss import LogLoss
from recmtl.metrics.names import SEGMENT_METRICS, VALUES, Values, is_wanted
from recmtl.metrics.regression import Errors
from recmtl.metrics.rows import RowMetric, Rows
from recmtl.metrics.units import SamplingUnits
from recmtl.schema import Task

MOST_SEGMENTS = 20
"""Values of a column whose rows are measured by themselves: those with most rows."""
LEFT_OUT = -1
"""In place of a segment's number: the row's value is none of the most frequent."""

Segments = dict[str, Any]
"""The metrics by the values of one column: ``values``, a list of ``value``, ``rows`` and ``tasks`` (metrics by task),
and how many values were ``left_out`` with how many ``left_out_rows``."""


@dataclass(frozen=True)
class SegmentColumn:
    """What is needed of a column: the segment of every row of a split."""

    codes: np.ndarray
    """int8 [N], in the order of the split's rows: the segment's place in `values`, or `LEFT_OUT`."""
    values: list[str]
    """What people call the segments, those with most rows first."""
    left_out: int
    """Values that are in none of them."""

    @staticmethod
    def largest(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """The most frequent of numbered values.

        Args:
            counts: rows of each number [V].

        Returns:
            The numbers of the values that are kept [S], most rows first and of as many the lower number; the code of
            every number, int8 [V]; and how many values are left out.
        """
        there = np.flatnonzero(counts)
        kept = there[np.argsort(-counts[there], kind="stable")][:MOST_SEGMENTS]
        code_of = np.full(len(counts), LEFT_OUT, np.int8)
        code_of[kept] = np.arange(len(kept))
        return kept, code_of, len(there) - len(kept)


class BySegment(RowMetric):
    """The metrics of every segment's rows by themselves (`recmtl.metrics.names.SEGMENT_METRICS`).

    Args:
        columns: by name; the rows of `segments` that `update` is given are in their order.

    Values:
        segments: by column, the metrics of each segment in the order of the column's `values`.
    """

    def __init__(
        self,
        task: Task,
        context: DistContext,
        units: SamplingUnits | None = None,
        columns: Mapping[str, SegmentColumn] | None = None,
    ) -> None:
        super().__init__(task, context, units)
        self.columns = columns or {}
        families = (AUC, LogLoss) if task.kind == "binary" else (Errors,)
        # They measure the rows of this metric and are given none of their own.
        self.metrics = [family(task, context) for family in families]

    def compute(self) -> Values:
        """The values of every segment; exchanges what the metrics do, a segment at a time."""
        return {
            "segments": {
                name: [self.measure(self.observed((place, code))) for code in range(len(column.values))]
                for place, (name, column) in enumerate(self.columns.items())
            }
        }

    def measure(self, rows: Rows) -> Values:
        """The metrics of some rows of all ranks."""
        found: Values = {}
        for metric in self.metrics:
            found |= metric.measure(rows)
        names = [name for name in VALUES[self.task.kind] if is_wanted(name, SEGMENT_METRICS) and name != "auc_folds"]
        return {name: found.get(name) for name in names}
