"""Cuts a source into partitions that a recipe's query sees one after the other: linear time, bounded memory.

A window or a join over all events at once outgrows the memory, and past it costs a multiple. Where a recipe names a
source's `partition_by`, rows that are equal in this column stay together, and that is all the query needs to see at
once.

    source ──hash of the column──▶ buckets on disk ──▶ the source's view, bucket after bucket
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import duckdb

from recmtl.data.prepare.duck import arrow_batches, column_types, joined_as_written, query_progress, quote, refusal
from recmtl.data.prepare.sources import count_raw_rows
from recmtl.data.prepare.stored import CHUNK_ROWS, Stored, scatter, show
from recmtl.data.recipe import Recipe, Source
from recmtl.runtime.progress import Progress, polled
from recmtl.runtime.storage import remove

PARTITION_ROWS = 2**20
"""Rows of a partition, at most about: few enough for the processor's caches."""
ROW_BYTES = 2000
"""Memory of the process for each raw row of a partition, and more than it takes."""
MOST_PARTITIONS = 256
"""Of more rows the partitions are larger: every chunk is dealt to all of them."""


def number_of_partitions(rows: int, memory: int) -> int:
    """Partitions to cut `rows` into for a process of `memory` bytes."""
    return min(max(1, -(-rows // min(PARTITION_ROWS, memory // ROW_BYTES))), MOST_PARTITIONS)


def show_partitions(
    db: duckdb.DuckDBPyConnection, recipe: Recipe, memory: int, path: Path, progress: Progress
) -> Generator[None, None, None]:
    """Let the recipe's views show one partition of the events after the other, where there are many and the recipe
    allows it; else all events at once. Shows how far the work on them is.

    Args:
        db: the database with the recipe's views.
        recipe: names the source and the column.
        memory: of the process, bytes.
        path: file for the events by partition.
        progress: where to show it.
    """
    source, raw_rows = recipe.partitioned_source, count_raw_rows(db, recipe)
    partitions = number_of_partitions(raw_rows, memory)
    if partitions == 1 or source is None:
        with progress.stage("reading raw files", 100) as advance, polled(query_progress(db), advance):
            yield
        return
    with progress.stage("partitioning events", raw_rows) as advance:
        for done in partition_by(db, source, partitions, path):
            advance(done)
    with progress.stage("running the query on every partition", partitions) as advance:
        for partition in iter_partitions(db, source, partitions, path):
            yield
            advance(partition + 1)


def partition_by(db: duckdb.DuckDBPyConnection, source: Source, partitions: int, path: Path) -> Iterator[int]:
    """Write the rows of a source into partitions; yields the number of rows written so far."""
    assert source.partition_by is not None
    key = f"cast(hash({quote(source.partition_by)}) % {partitions} as usmallint)"
    columns = [quote(name) for name, sql_type in column_types(db, quote(source.name)).items() if not refusal(sql_type)]
    query = f"select {', '.join([*columns, key])} from {quote(source.name)}"
    # What a log is joined with is smaller.
    with joined_as_written(db):
        yield from scatter(arrow_batches(db, query, CHUNK_ROWS), partitions, path)


def iter_partitions(db: duckdb.DuckDBPyConnection, source: Source, partitions: int, path: Path) -> Iterator[int]:
    """Make the source's view show one partition after the other; yields their numbers."""
    columns = column_types(db, quote(source.name))
    for partition in range(partitions):
        show(db, Stored(path, partition, partitions), quote(source.name), columns)
        yield partition
    db.execute(f"drop view {quote(source.name)}")
    remove(path)
