"""Shuffles encoded rows: into the order of their hashes, split after split, without sorting all of them at once.

    encoded rows ──split and range of the hash──▶ buckets on disk ──each by itself──▶ sorted

Hashes are spread evenly, so ranges of equal width have about as many rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from recmtl.data.prepare.stored import Stored, write_scattered
from recmtl.schema import SPLITS

HASH = "#hash"


class BucketWriter:
    """Writes rows into buckets, to be used as a context.

    Args:
        path: the file.
        layout: names and types of the columns.
        ranges: of the hash; their number times that of the splits is the number of buckets.
    """

    def __init__(self, path: Path, layout: pa.Schema, ranges: int) -> None:
        self.path, self.ranges = path, ranges
        self.schema = layout.append(pa.field(HASH, pa.uint64()))

    def write(self, rows: pa.RecordBatch, splits: np.ndarray, hashes: np.ndarray) -> None:
        """Write rows [n] of these splits (uint8) and hashes (uint64)."""
        high = (hashes >> np.uint64(32)) * np.uint64(self.ranges)
        bucket = splits.astype(np.int64) * self.ranges + (high >> np.uint64(32)).astype(np.int64)
        rows = pa.RecordBatch.from_arrays([*rows.columns, pa.array(hashes)], schema=self.schema)
        write_scattered(self._file, rows, bucket, self.ranges * len(SPLITS))

    def __enter__(self) -> BucketWriter:
        self._file = pa.ipc.new_file(self.path, self.schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def sorted_rows(path: Path, ranges: int) -> Iterator[pa.RecordBatch]:
    """The rows of all buckets, split after split, in the order of their hashes, which are left out."""
    buckets = ranges * len(SPLITS)
    for number in range(buckets):
        stored = Stored(path, number, buckets)
        bucket = pa.Table.from_batches(stored, stored.schema).combine_chunks()
        order = np.argsort(bucket[HASH].to_numpy(), kind="stable")
        yield from bucket.drop_columns([HASH]).take(pa.array(order)).to_batches()
