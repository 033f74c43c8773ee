"""From a prepared split to batches, in an order that does not depend on the number of ranks.

A split is cut into a fixed number of streams (contiguous row ranges), dealt out over the ranks. Each global
batch takes an equal part of every stream, so global batch k of epoch e holds the same rows on 1 rank and on 8,
and any batch can be reached without reading those before it. Within a stream the row groups, and the rows
within a row group, are visited in another order every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from recmtl.data.read.batch import Batch
from recmtl.data.read.parquet import Gather, ParquetSplit
from recmtl.data.read.rows import Rows
from recmtl.data.read.window import Window
from recmtl.errors import UserError
from recmtl.schema import Dataset, Task

STREAM_ROWS = 1024
"""Rows that a stream gives to batches at a time, or one batch's: so many batches are filled at once as they are enough
for. Fewer of them cost more time per row, more of them memory."""

Map = Callable[[Callable[[int], None], Iterable[int]], Iterator[None]]
"""Calls a function with each of several numbers, as `map` does."""


class Reader:
    """Batches of one split for one rank.

    Args:
        folder: the prepared folder.
        dataset: what ``dataset.json`` says of it.
        split: train, val, test or `WHOLE`.
        tasks: tasks whose labels to read, in order.
        batch_size: rows in a global batch.
        streams: row ranges that are read side by side, and at most so many files are open on all ranks together.
        rank: this process.
        world_size: number of processes.
        seed: of the order of rows.
        shuffle: visit rows in another order every epoch; else in the order of the files.
        evaluation: also read true probabilities and groups, and number the rows.
        gather: how to share out the look at the files among the ranks; None: every rank looks at all.
        pin_memory: put batches into page-locked memory.
        later: by table, whether an id [rows] is to be read as `UNSEEN`.
        threads: that decode rows and put them in their order, at most.

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
        threads: int = 1,
    ) -> None:
        streams = min(streams, batch_size)
        if streams < world_size:
            raise UserError(
                f"reader.streams and training.batch_size: at least the number of ranks ({world_size}), not {streams}"
            )
        share = None if gather is None else (rank, world_size, gather)
        open_files = streams // world_size
        self._threads = min(threads, open_files)
        self.data = ParquetSplit(folder, dataset, split, tasks, evaluation, share, later, open_files)
        # Where one batch holds all rows, more padding and more streams would only take memory.
        streams = min(streams, max(self.data.rows, world_size))
        batch_size = min(batch_size, max(self.data.rows, streams))
        self.seed, self.shuffle, self.world_size, self.pin_memory = seed, shuffle, world_size, pin_memory
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
        self.filled_at_once = max(1, STREAM_ROWS // int(self._share[self._mine].max()))
        """Batches that are filled at once, where no stream ends."""
        self.local_batch_size = int(max(self._share[owners == r].sum() for r in range(world_size)))
        """Rows in this rank's batches, padding included; the same on every rank."""

    def rows_in_step(self, step: int) -> int:
        """Real rows in global batch `step`."""
        return int(np.clip(self._sizes - step * self._share, 0, self._share).sum())

    def batches(self, epoch: int = 0, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches start … stop − 1 of an epoch (default: all of them)."""
        stop = self.steps if stop is None else min(stop, self.steps)
        shares, sizes = self._share[self._mine], self._sizes[self._mine]
        cursors = [
            _Cursor(self.data, low, high, (self.seed, epoch, s) if self.shuffle else None, start * self._share[s])
            for s, (low, high) in zip(self._mine.tolist(), self._ranges[self._mine].tolist(), strict=True)
        ]
        full = int(np.min(sizes // shares))
        """Batches in which no stream of this rank runs out of rows."""
        with self._workers() as each:
            while start < stop:
                count = max(1, min(self.filled_at_once, full - start, stop - start))
                yield from self._fill(each, cursors, np.clip(sizes - start * shares, 0, shares), start, count)
                start += count

    def _fill(self, each: Map, cursors: list[_Cursor], rows: np.ndarray, start: int, count: int) -> Iterator[Batch]:
        """`count` batches from `start` on, each with `rows` [S] of this rank's streams."""
        window = Window(self.data, count, self.local_batch_size, len(cursors))
        columns = np.cumsum(rows) - rows

        def place(stream: int) -> None:
            taken = cursors[stream].take(int(rows[stream]) * count)
            window.place(stream, taken, int(columns[stream]))

        for _ in each(place, np.flatnonzero(rows).tolist()):
            pass
        batches = window.batches(
            int(rows.sum()), [self.world_size / self.rows_in_step(start + i) for i in range(count)]
        )
        for batch in batches:
            yield batch.pin_memory() if self.pin_memory else batch

    @contextmanager
    def _workers(self) -> Iterator[Map]:
        """What calls a function for each of several streams, in threads; closes files in the end."""
        try:
            if self._threads == 1:
                yield map
            else:
                with ThreadPoolExecutor(self._threads, "recmtl-decoder") as pool:
                    yield pool.map
        finally:
            self.data.open_files.close()


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
        self._data, self._rng, self._skip = data, rng, int(skip)
        groups = np.arange(np.searchsorted(data.starts, start, side="right") - 1, np.searchsorted(data.starts, stop))
        first = data.starts[groups]
        lows, highs = np.maximum(start, first) - first, np.minimum(stop, data.starts[groups + 1]) - first
        chunks = np.stack([groups, lows, highs], axis=1)[lows < highs]  # row group, first row in it, one past the last
        if rng is not None:
            chunks = chunks[np.random.default_rng(rng).permutation(len(chunks))]
        self._chunks: list[list[int]] = chunks.tolist()
        self._next = 0
        """Place of the row group to be read next: the one that has rows after those to pass over."""
        while self._next < len(self._chunks) and self._skip >= self._size(self._next):
            self._skip -= self._size(self._next)
            self._next += 1
        self._expect()
        self._rows: Rows | None = None
        """Those of the row group that the stream is in, in their order."""
        self._at = 0

    def take(self, rows: int) -> Rows:
        """The next `rows` rows, at least one; the stream must have so many left."""
        parts = []
        while rows:
            if self._rows is None or self._at == len(self._rows):
                self._rows = None  # its memory is free before the next one is decoded
                self._rows, self._at = self._read(), 0
            stop = min(self._at + rows, len(self._rows))
            parts.append(self._rows.slice(self._at, stop))
            rows -= stop - self._at
            self._at = stop
        return Rows.joined(parts)

    def _expect(self) -> None:
        """Have the next row group come while the rows of this one are used."""
        if self._next < len(self._chunks):
            self._data.expect(self._chunks[self._next][0])

    def _size(self, place: int) -> int:
        _, low, high = self._chunks[place]
        return high - low

    def _read(self) -> Rows:
        """What is to be read of the next row group."""
        number, low, high = self._chunks[self._next]
        skip, self._skip = self._skip, 0
        rows = self._data.read(number)
        self._next += 1
        self._expect()
        if self._rng is None:
            return rows.slice(low + skip, high)
        order = low + np.random.default_rng((*self._rng, number)).permutation(high - low)
        return rows.take(order[skip:])
