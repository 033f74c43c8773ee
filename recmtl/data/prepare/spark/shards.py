"""Which shard every encoded row belongs to, told by how many rows have which hash.

A histogram of the hashes of every split, by their upper bits, says between which ranks a bucket's rows lie. A shard is
made of the buckets that it touches. Those at its ends go to its neighbours too, and each shard leaves out what is not
its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recmtl.data.prepare.shards import SHARD_ROWS
from recmtl.data.prepare.spark.transfer import deal
from recmtl.schema import SPLITS

BUCKET_BITS = 16
BUCKETS = 2**BUCKET_BITS


def count_hashes(splits: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Rows by split and bucket of the hash, int64 [splits, buckets].

    Args:
        splits: index into `SPLITS` of every row, uint8 [n].
        hashes: of the rows, uint64 [n].
    """
    cells = splits.astype(np.int64) * BUCKETS + _bucket(hashes)
    return np.bincount(cells, minlength=len(SPLITS) * BUCKETS).reshape(len(SPLITS), BUCKETS)


@dataclass(frozen=True)
class Shard:
    """A file to be written."""

    split: str
    number: int
    """Within the split."""
    skip: int
    """Rows that come first and belong to the shard before."""
    rows: int


class ShardMap:
    """The shards of all splits.

    Args:
        counts: rows by split and bucket, int64 [splits, buckets].
        shard_rows: rows of every shard but the last of a split.
    """

    def __init__(self, counts: np.ndarray, shard_rows: int = SHARD_ROWS) -> None:
        self.shards: list[Shard] = []
        self.first = np.zeros(counts.shape, np.int64)
        """Number, among all shards, of the first that rows of a split and bucket go to."""
        self.last = np.zeros(counts.shape, np.int64)
        """The same of the last."""
        for place, split in enumerate(SPLITS):
            ends = np.cumsum(counts[place])
            starts, total = ends - counts[place], int(ends[-1])
            self.first[place] = len(self.shards) + starts // shard_rows
            self.last[place] = len(self.shards) + np.maximum(ends - 1, starts) // shard_rows
            for number in range(-(-total // shard_rows)):
                start = number * shard_rows
                bucket = int(np.searchsorted(ends, start, side="right"))
                rows = min(shard_rows, total - start)
                self.shards.append(Shard(split, number, start - int(starts[bucket]), rows))

    def deal(self, rows: pa.RecordBatch, splits: np.ndarray, hashes: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """The rows of every shard, by its number; rows of a bucket between two go to both.

        Args:
            rows: any columns.
            splits: index into `SPLITS` of every row, uint8 [n].
            hashes: of the rows, uint64 [n].
        """
        places = splits.astype(np.int64), _bucket(hashes)
        first, last = self.first[places], self.last[places]
        copies = last - first + 1
        if (copies > 1).any():
            of_row = np.repeat(np.arange(len(first)), copies)
            first = first[of_row] + np.arange(len(of_row)) - np.repeat(np.cumsum(copies) - copies, copies)
            rows = rows.take(pa.array(of_row))
        yield from deal(rows, first)


def _bucket(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)
