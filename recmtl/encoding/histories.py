"""Sequences that are columns of one history have an item for every event."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from recmtl.errors import UserError
from recmtl.features import TableKind
from recmtl.schema import Feature


class Misaligned(UserError):
    """The columns of a history differ in length in a row.

    Args:
        history: its name.
        row: the row's place among those that were looked at.
        columns: two of the history's columns.
        lengths: how many items the row has of each.
        first_row: number of the first row that was looked at, for the message.

    Attributes:
        row, columns: as given.
    """

    def __init__(
        self, history: str, row: int, columns: tuple[str, str], lengths: tuple[int, int], first_row: int = 0
    ) -> None:
        self.row, self.columns, self._history, self._lengths = row, columns, history, lengths
        super().__init__(self.of(f"row {first_row + row} (counted from 0)"))

    def of(self, row: str) -> str:
        """The message, of the row by another name."""
        (column, first), (found, wanted) = self.columns, self._lengths
        return (
            f"history {self._history!r} misaligned in {row}: column {column!r} has {found} items and column {first!r} "
            f"{wanted}; the lists of a history need an item for every event, null where there is no value"
        )


def check_aligned(sequences: Sequence[TableKind], lengths: Callable[[Feature], np.ndarray], first_row: int = 0) -> None:
    """Refuse histories whose columns differ in length in a row: which items are of one event is not known then.

    Args:
        sequences: the kinds of all sequences.
        lengths: gives how many items each row has of one of them, int [n], or [1] for all rows.
        first_row: number of the first row, for messages.

    Raises:
        Misaligned: names both columns, the row and both lengths.
    """
    firsts: dict[str, Feature] = {}
    for feature in (kind.feature for kind in sequences):
        first = firsts.setdefault(feature.history, feature)
        if first is feature:
            continue
        wanted, found = np.broadcast_arrays(lengths(first), lengths(feature))
        if len(differing := np.flatnonzero(found != wanted)):
            row = int(differing[0])
            columns, counts = (feature.column, first.column), (int(found[row]), int(wanted[row]))
            raise Misaligned(feature.history, row, columns, counts, first_row)
