"""The rows of a split told apart by the value of one column, as metrics are asked for by segment."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

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
    def largest(numbers: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """The most frequent of numbered values.

        Args:
            numbers: of the value of every row [N], from 0 on.
            counts: rows of each number [V].

        Returns:
            The numbers of the values that are kept [S], most rows first and of as many the lower number; `codes`; and
            how many values are left out.
        """
        there = np.flatnonzero(counts)
        kept = there[np.argsort(-counts[there], kind="stable")][:MOST_SEGMENTS]
        code_of = np.full(len(counts), LEFT_OUT, np.int8)
        code_of[kept] = np.arange(len(kept))
        return kept, code_of[numbers], len(there) - len(kept)

    def rows(self, row_number: np.ndarray) -> list[np.ndarray]:
        """Which of some rows are in each segment: places in `row_number`, the rows' places in the split."""
        codes = self.codes[row_number]
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(len(self.values) + 1))
        return [order[start:stop] for start, stop in pairwise(ends)]
