"""Which fold of the jackknife every row is in, where ranks know their own users alone."""

from __future__ import annotations

import numpy as np

from recmtl.distributed.context import DistContext
from recmtl.metrics.jackknife import FOLDS, folds_of
from recmtl.schema import NO_USER

MIN_USERS = FOLDS
"""Where there are fewer users than that, rows are the sampling units: most folds would have no user."""


class SamplingUnits:
    """Users, where the rows of all ranks have `MIN_USERS` of them, else rows.

    That is known at the end, so rows keep both folds until then. A rank keeps no more than `MIN_USERS` users for it.

    Args:
        context: this process and the others.
    """

    def __init__(self, context: DistContext) -> None:
        self._context = context
        self._seen: set[int] = set()
        self._decided: bool | None = None

    def folds(self, users: np.ndarray | None, row_number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The folds of some rows, uint8 [n]: if rows are the units, and if users are.

        Then all rows of a user share one; a row without a user is a unit of its own either way.

        Args:
            users: int64 [n], `NO_USER` for none; None: no row has one.
            row_number: place of every row in the split, int64 [n].
        """
        self._decided = None
        by_row = folds_of(row_number)
        if users is None:
            return by_row, by_row
        known = users != NO_USER
        if len(self._seen) < MIN_USERS:
            self._seen.update(np.unique(users[known])[:MIN_USERS].tolist())
        return by_row, np.where(known, folds_of(users), by_row)

    def are_users(self) -> bool:
        """Whether users are the units, agreed by all ranks, which ask together."""
        if self._decided is None:
            seen = self._context.gather(lambda: sorted(self._seen)[:MIN_USERS])
            self._decided = len({user for some in seen for user in some}) >= MIN_USERS
        return self._decided
