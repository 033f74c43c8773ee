"""Cuts a source into parts that a recipe's query sees one after the other: its time is linear, its memory bounded.

A window or a join over all events at once outgrows the memory, and past it costs a multiple. Where a recipe names a
source's `parts_by`, rows that are equal in this column stay together, and that is all the query needs to see at once.

    source ──hash of the column──▶ buckets on disk ──▶ the source's view, bucket after bucket
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb

from recmtl.data.prepare.duck import arrow_batches, column_types, joined_as_written, quote, refusal
from recmtl.data.prepare.stored import CHUNK_ROWS, Stored, scatter, show
from recmtl.data.recipe import Source

PART_ROWS = 2**20
"""Rows of a part, at most about: few enough for the processor's caches."""
ROW_BYTES = 2000
"""Memory of the process for each raw row of a part, and more than it takes."""
MOST_PARTS = 256
"""Of more rows the parts are larger: every chunk is dealt to all of them."""


def number_of_parts(rows: int, memory: int) -> int:
    """Parts to cut `rows` into for a process of `memory` bytes."""
    return min(max(1, -(-rows // min(PART_ROWS, memory // ROW_BYTES))), MOST_PARTS)


def cut(db: duckdb.DuckDBPyConnection, source: Source, parts: int, path: Path) -> Iterator[int]:
    """Write the rows of a source into parts; yields the number of rows written so far."""
    assert source.parts_by is not None
    key = f"cast(hash({quote(source.parts_by)}) % {parts} as usmallint)"
    columns = [quote(name) for name, kind in column_types(db, quote(source.name)).items() if not refusal(kind)]
    query = f"select {', '.join([*columns, key])} from {quote(source.name)}"
    # What a log is joined with is smaller.
    with joined_as_written(db):
        yield from scatter(arrow_batches(db, query, CHUNK_ROWS), parts, path)


def shown(db: duckdb.DuckDBPyConnection, source: Source, parts: int, path: Path) -> Iterator[int]:
    """Make the source's view show one part after the other; yields their numbers."""
    columns = column_types(db, quote(source.name))
    for part in range(parts):
        show(db, Stored(path, part, parts), quote(source.name), columns)
        yield part
    db.execute(f"drop view {quote(source.name)}")
    path.unlink()
