"""Decoded rows, column by column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Lists:
    """The ids of L list features in n rows; those of one feature lie row after row."""

    lengths: np.ndarray
    """int32 [L, n]: how many ids a row has."""
    starts: np.ndarray
    """int64 [L, n]: where in `values` they begin."""
    values: np.ndarray
    """int32: of all features; slices share it."""

    @classmethod
    def packed(cls, lengths: np.ndarray, values: np.ndarray) -> Lists:
        """From ids that lie without a gap, feature after feature."""
        ends = np.cumsum(lengths, dtype=np.int64).reshape(lengths.shape)
        return cls(lengths, ends - lengths, values)

    @property
    def nbytes(self) -> int:
        return self.lengths.nbytes + self.starts.nbytes + self.values.nbytes

    def feature_ids(self, feature: int) -> np.ndarray:
        """The ids of a feature in all rows, of which there is at least one; without copying."""
        return self.values[self.starts[feature, 0] : self.starts[feature, -1] + self.lengths[feature, -1]]

    def take(self, index: np.ndarray) -> Lists:
        """Rows in the order of `index`."""
        taken = Lists.packed(self.lengths[:, index], self.values)
        # Position of each id: its row's start, plus its place within the row.
        shift = np.repeat((self.starts[:, index] - taken.starts).ravel(), taken.lengths.ravel())
        taken.values = self.values[shift + np.arange(len(shift))]
        return taken

    def slice(self, start: int, stop: int) -> Lists:
        """Rows start … stop − 1, without copying."""
        return Lists(self.lengths[:, start:stop], self.starts[:, start:stop], self.values)


@dataclass
class Rows:
    """Decoded rows, column by column (n rows, C categorical, N numeric features, T tasks)."""

    ids: np.ndarray
    """int32 [C, n]."""
    lists: Lists
    """Those of the list features."""
    numeric: np.ndarray
    """float32 [n, N]."""
    labels: np.ndarray
    """float32 [n, T], NaN where there is none."""
    oracle: np.ndarray | None = None
    """float32 [n, T], NaN where unknown."""
    row_weights: np.ndarray | None = None
    """float32 [n, T]; None: all rows weigh the same."""
    group: np.ndarray | None = None
    """int64 [n]."""
    row_number: np.ndarray | None = None
    """int64 [n]: their places in the split."""

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def extras(self) -> tuple[np.ndarray | None, ...]:
        """The columns that some batches lack, in the order of `recmtl.data.read.batch.Batch`: rows come first."""
        return self.oracle, self.row_weights, self.group, self.row_number

    @property
    def nbytes(self) -> int:
        arrays = (self.ids, self.lists, self.numeric, self.labels, *self.extras)
        return sum(array.nbytes for array in arrays if array is not None)

    def take(self, index: np.ndarray) -> Rows:
        """Rows in the order of `index`."""
        return Rows(
            self.ids.take(index, axis=1),
            self.lists.take(index),
            self.numeric.take(index, axis=0),
            self.labels.take(index, axis=0),
            *(None if extra is None else extra.take(index, axis=0) for extra in self.extras),
        )

    def slice(self, start: int, stop: int) -> Rows:
        """Rows start … stop − 1, without copying."""
        return Rows(
            self.ids[:, start:stop],
            self.lists.slice(start, stop),
            self.numeric[start:stop],
            self.labels[start:stop],
            *(None if extra is None else extra[start:stop] for extra in self.extras),
        )
