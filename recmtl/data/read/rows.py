"""Decoded rows, column by column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

ID_BYTES = np.dtype(np.int32).itemsize


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

    @classmethod
    def joined(cls, parts: list[Lists]) -> Lists:
        """The rows of several, one after the other."""
        values = [ids for feature in range(len(parts[0].lengths)) for part in parts for ids in part.pieces(feature, 1)]
        return cls.packed(
            np.concatenate([part.lengths for part in parts], axis=1),
            np.concatenate([np.empty(0, np.int32), *values]),
        )

    def pieces(self, feature: int, pieces: int) -> list[np.ndarray]:
        """The ids of a feature in equal parts of the rows, at least one row each; without copying."""
        rows = self.lengths.shape[1] // pieces
        begins = self.starts[feature, ::rows].tolist()
        ends = (self.starts[feature, rows - 1 :: rows] + self.lengths[feature, rows - 1 :: rows]).tolist()
        return [self.values[begin:end] for begin, end in zip(begins, ends, strict=True)]

    def take(self, index: np.ndarray) -> Lists:
        """Rows in the order of `index`; of lists as `packed` makes them, no slice of them.

        Arrow copies the bytes of a row at once. Copying id by id takes several times as long.
        """
        features, rows = self.lengths.shape
        offsets = ID_BYTES * np.append(self.starts, len(self.values))
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self.values)]
        lists = pa.Array.from_buffers(pa.large_binary(), features * rows, buffers)
        taken = lists.take(pa.array((np.arange(features)[:, None] * rows + index).ravel()))
        lengths = self.lengths.take(index, axis=1)
        values = np.frombuffer(taken.buffers()[2], self.values.dtype, lengths.sum(dtype=np.int64))
        return Lists.packed(lengths, values)

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

    @classmethod
    def joined(cls, parts: list[Rows]) -> Rows:
        """The rows of several, at least one, one after the other."""
        if len(parts) == 1:
            return parts[0]
        extras = zip(*(part.extras for part in parts), strict=True)
        return cls(
            np.concatenate([part.ids for part in parts], axis=1),
            Lists.joined([part.lists for part in parts]),
            np.concatenate([part.numeric for part in parts]),
            np.concatenate([part.labels for part in parts]),
            *(None if extra[0] is None else np.concatenate(extra) for extra in extras),
        )

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
