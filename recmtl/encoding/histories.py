"""Sequences that are columns of one history have an item for every event."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from recmtl.errors import UserError
from recmtl.features import TableKind
from recmtl.schema import Feature


class Misaligned(UserError):
    """The columns of a history differ in length in a row."""


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
            raise Misaligned(
                f"history {feature.history!r} misaligned: in row {first_row + row} (counted from 0) column "
                f"{feature.column!r} has {found[row]} items and column {first.column!r} {wanted[row]}; the lists of a "
                "history need an item for every event, null where there is no value"
            )
