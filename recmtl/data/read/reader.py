"""From a prepared split to batches, in an order that does not depend on the number of ranks.

A split is cut into a fixed number of streams (contiguous row ranges), dealt out over the ranks. Each global
batch takes an equal part of every stream, so global batch k of epoch e holds the same rows on 1 rank and on 8,
and any batch can be reached without reading those before it. Within a stream the row groups, and the rows
within a row group, are visited in another order every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recmtl.data.read.batch import Batch
from recmtl.data.read.parquet import Gather, ParquetSplit
from recmtl.data.read.rows import Lists, Rows
from recmtl.errors import UserError
from recmtl.schema import Dataset, Task

SHUFFLED_ROWS = 4096
"""Rows of a row group that are put in their order at a time: all at once they would lie beside those in the cache a
second time, and those of one batch at a time take three times as long."""


class Reader:
    """Batches of one split for one rank.

    Args:
        folder: the prepared folder.
        dataset: what ``dataset.json`` says of it.
        split: train, val, test or `WHOLE`.
        tasks: tasks whose labels to read, in order.
        batch_size: rows in a global batch.
        streams: row ranges that are read side by side.
        rank: this process.
        world_size: number of processes.
        seed: of the order of rows.
        shuffle: visit rows in another order every epoch; else in the order of the files.
        evaluation: also read true probabilities and groups, and number the rows.
        gather: how to share out the look at the files among the ranks; None: every rank looks at all.
        pin_memory: put batches into page-locked memory.
        later: by table, whether an id [rows] is to be read as `UNSEEN`.

    Raises:
        UserError: there are more ranks than streams, or files are damaged.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        split: str,
        tasks: tuple[Task, ...],
        *,
        batch_size: int,
        streams: int = 64,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = False,
        evaluation: bool = False,
        gather: Gather | None = None,
        pin_memory: bool = False,
        later: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        streams = min(streams, batch_size)
        if streams < world_size:
            raise UserError(
                f"reader.streams and training.batch_size: at least the number of ranks ({world_size}), not {streams}"
            )
        share = None if gather is None else (rank, world_size, gather)
        self.data = ParquetSplit(folder, dataset, split, tasks, evaluation, share, later)
        # Where one batch holds all rows, more padding and more streams would only take memory.
        streams = min(streams, max(self.data.rows, world_size))
        batch_size = min(batch_size, max(self.data.rows, streams))
        self.seed, self.shuffle, self.world_size, self.pin_memory = seed, shuffle, world_size, pin_memory
        self.keys = [kind.feature.name for kind in (*self.data.categorical, *self.data.lists)]
        # Rows of every stream that one batch takes, and row ranges in the same proportion: all end together.
        self._share = np.full(streams, batch_size // streams) + (np.arange(streams) < batch_size % streams)
        bounds = np.concatenate(([0], np.cumsum(self._share))) * self.data.rows // batch_size
        self._ranges = np.stack([bounds[:-1], bounds[1:]], axis=1)
        sizes = bounds[1:] - bounds[:-1]
        self._sizes = sizes
        self.steps = int(np.max(-(-sizes // self._share)))
        """Batches in an epoch, the same on every rank."""
        owners = np.arange(streams) * world_size // streams
        self._mine = np.flatnonzero(owners == rank)
        self.local_batch_size = int(max(self._share[owners == r].sum() for r in range(world_size)))
        """Rows in this rank's batches, padding included; the same on every rank."""
        self._full_lengths = torch.ones(len(self.data.categorical) * self.local_batch_size, dtype=torch.int32)

    def rows_in_step(self, step: int) -> int:
        """Real rows in global batch `step`."""
        return int(np.clip(self._sizes - step * self._share, 0, self._share).sum())

    def batches(self, epoch: int = 0, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches start … stop − 1 of an epoch (default: all of them)."""
        stop = self.steps if stop is None else min(stop, self.steps)
        cursors = [
            _Cursor(self.data, low, high, (self.seed, epoch, s) if self.shuffle else None, start * self._share[s])
            for s, (low, high) in zip(self._mine.tolist(), self._ranges[self._mine].tolist(), strict=True)
        ]
        for step in range(start, stop):
            pieces = [
                piece
                for cursor, share in zip(cursors, self._share[self._mine], strict=True)
                for piece in cursor.take(int(share))
            ]
            yield self._collate(pieces, self.world_size / self.rows_in_step(step))

    def _collate(self, pieces: list[Rows], weight: float) -> Batch:
        """Join rows of all streams and pad them with id 0 and weight 0."""
        rows = sum(len(piece) for piece in pieces)
        size, data = self.local_batch_size, self.data
        ids = np.zeros((len(data.categorical), size), np.int32)
        labels = np.zeros((size, len(data.tasks)), np.float32)
        numeric = np.zeros((size, data.width), np.float32)
        extras = self._extras(size)
        if pieces:
            np.concatenate([piece.ids for piece in pieces], axis=1, out=ids[:, :rows])
            np.concatenate([piece.labels for piece in pieces], out=labels[:rows])
            np.concatenate([piece.numeric for piece in pieces], out=numeric[:rows])
            for extra, parts in zip(extras, zip(*(piece.extras for piece in pieces), strict=True), strict=True):
                if extra is not None:
                    np.concatenate(parts, out=extra[:rows])
        weights = np.zeros(size, np.float32)
        weights[:rows] = weight
        batch = Batch(
            self._keyed_jagged_tensor(ids, [piece.lists for piece in pieces], rows),
            torch.from_numpy(numeric),
            torch.from_numpy(labels),
            torch.from_numpy(weights),
            rows,
            *(None if extra is None else torch.from_numpy(extra) for extra in extras),
        )
        return batch.pin_memory() if self.pin_memory else batch

    def _extras(self, size: int) -> tuple[np.ndarray | None, ...]:
        """Room for `Rows.extras` of so many rows."""
        data, tasks = self.data, len(self.data.tasks)
        return (
            np.full((size, tasks), np.nan, np.float32) if data.with_oracle else None,
            np.zeros((size, tasks), np.float32) if data.weight_columns else None,
            np.zeros(size, np.int64) if data.with_group else None,
            np.zeros(size, np.int64) if data.with_row_number else None,
        )

    def _keyed_jagged_tensor(self, ids: np.ndarray, lists: list[Lists], rows: int) -> KeyedJaggedTensor:
        if not self.data.lists:
            # Without keys there are no lengths to tell the stride by.
            return KeyedJaggedTensor(
                self.keys,
                torch.from_numpy(ids.reshape(-1)),
                lengths=self._full_lengths,
                stride=self.local_batch_size,
            )
        features = len(self.data.lists)
        lengths = np.zeros((features, self.local_batch_size), np.int32)
        if lists:
            np.concatenate([piece.lengths for piece in lists], axis=1, out=lengths[:, :rows])
        values = [piece.feature_ids(feature) for feature in range(features) for piece in lists]
        return KeyedJaggedTensor(
            self.keys,
            torch.from_numpy(np.concatenate([ids.reshape(-1), *values])),
            lengths=torch.cat([self._full_lengths, torch.from_numpy(lengths.reshape(-1))]),
        )


class _Cursor:
    """Walks through one stream: the row range start … stop − 1 of a split.

    Args:
        data: the split.
        start: first row.
        stop: one past the last row.
        rng: seeds of this stream's order; None: the order of the files.
        skip: rows to pass over; of their row groups only the last one gets decoded.
    """

    def __init__(self, data: ParquetSplit, start: int, stop: int, rng: tuple[int, ...] | None, skip: int) -> None:
        self._data, self._rng = data, rng
        first = int(np.searchsorted(data.starts, start, side="right")) - 1
        self._chunks: list[tuple[int, int, int]] = []  # row group, first row in it, one past the last
        for number in range(first, len(data.starts) - 1):
            low, high = int(data.starts[number]), int(data.starts[number + 1])
            if low >= stop:
                break
            if max(start, low) < min(stop, high):
                self._chunks.append((number, max(start, low) - low, min(stop, high) - low))
        if rng is not None:
            order = np.random.default_rng(rng).permutation(len(self._chunks))
            self._chunks = [self._chunks[i] for i in order]
        self._blocks = self._read(skip)
        self._rows: Rows | None = None
        self._at = 0

    def take(self, rows: int) -> Iterator[Rows]:
        """The next `rows` rows in pieces; fewer at the end of the stream."""
        while rows:
            if self._rows is None or self._at == len(self._rows):
                self._rows, self._at = next(self._blocks, None), 0
                if self._rows is None:
                    return
            stop = min(self._at + rows, len(self._rows))
            yield self._rows.slice(self._at, stop)
            rows -= stop - self._at
            self._at = stop

    def _read(self, skip: int) -> Iterator[Rows]:
        """All rows but the first `skip`, in blocks."""
        for number, low, high in self._chunks:
            if skip >= high - low:
                skip -= high - low
                continue
            rows = self._data.read(number)
            if self._rng is None:
                yield rows.slice(low + skip, high)
            else:
                order = low + np.random.default_rng((*self._rng, number)).permutation(high - low)
                for start in range(skip, len(order), SHUFFLED_ROWS):
                    yield rows.take(order[start : start + SHUFFLED_ROWS])
            skip = 0
