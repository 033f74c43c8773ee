"""Shuffles encoded rows: into the order of their hashes, split after split, without sorting all of them at once.

    encoded rows ──split and range of the hash──▶ buckets on disk ──each by itself──▶ sorted

Hashes are spread evenly, so ranges of equal width have about as many rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from recmtl.data.dataset import SPLITS
from recmtl.data.duck import arrow_batches, joined_as_written
from recmtl.data.examples import HASH, SPLIT
from recmtl.data.stored import CHUNK_ROWS, Stored, scatter

BUCKET = '"#bucket"'


def scatter_by_hash(db: duckdb.DuckDBPyConnection, query: str, ranges: int, path: Path) -> Iterator[int]:
    """Write the rows of `query`, which end in `SPLIT` and `HASH`, into buckets; yields the number of rows so far."""
    bucket = f"cast({SPLIT} * {ranges} + ((({HASH} >> 32) * {ranges}) >> 32) as usmallint)"
    query = f"select * exclude ({SPLIT}), {bucket} from ({query})"
    # Vocabularies are shorter than what is looked up in them.
    with joined_as_written(db):
        yield from scatter(arrow_batches(db, query, CHUNK_ROWS), ranges * len(SPLITS), path)


def sorted_by_hash(db: duckdb.DuckDBPyConnection, ranges: int, path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of all buckets, split after split, in the order of `HASH`, which is left out."""
    buckets = ranges * len(SPLITS)
    for number in range(buckets):
        db.register(BUCKET.strip('"'), Stored(path, number, buckets))
        yield from arrow_batches(db, f"select * exclude ({HASH}) from {BUCKET} order by {HASH}", CHUNK_ROWS)
