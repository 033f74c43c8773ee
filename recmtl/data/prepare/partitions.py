"""Cuts a source into partitions that a recipe's query sees one after the other: linear time, bounded memory.

A window or a join over all events at once outgrows the memory, and past it costs a multiple. Where a recipe names a
source's `partition_by`, rows that are equal in this column stay together, and that is all the query needs to see at
once.

    source ──hash of the column──▶ buckets on disk ──▶ the source's view, bucket after bucket
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping
from pathlib import Path

import duckdb

from recmtl.data.prepare.duck import arrow_batches, column_types, joined_as_written, query_progress, quote, refusal
from recmtl.data.prepare.sources import count_raw_rows
from recmtl.data.prepare.stored import CHUNK_ROWS, Stored, scatter, show
from recmtl.data.prepare.types import unify
from recmtl.data.recipe import Recipe, Source
from recmtl.errors import UserError
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
    return min(max(1, -(-rows // rows_at_once(memory))), MOST_PARTITIONS)


def rows_at_once(memory: int) -> int:
    """Raw rows that a process of `memory` bytes may hold together."""
    return min(PARTITION_ROWS, memory // ROW_BYTES)


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
    sources = {
        source.name: source
        for source in recipe.partitioned_sources
        if source.partition_by in column_types(db, quote(source.name))  # an optional one may lack it
    }
    raw_rows = count_raw_rows(db, recipe)
    partitions = number_of_partitions(raw_rows, memory)
    if partitions == 1 or not sources:
        with progress.stage("reading raw files", 100) as advance, polled(query_progress(db), advance):
            yield
        return
    paths = {name: path.with_name(f"{path.name} of {name}") for name in sources}
    types = {name: column_types(db, quote(name)) for name in sources}
    sql_type = partition_type(recipe, sources.values(), types)
    with progress.stage("partitioning events", raw_rows * len(sources)) as advance:
        for number, (name, source) in enumerate(sources.items()):
            for done in partition_by(db, source, types[name], sql_type, partitions, paths[name]):
                advance(raw_rows * number + done)
    with progress.stage("running the query on every partition", partitions) as advance:
        for partition in iter_partitions(db, types, partitions, paths):
            yield
            advance(partition + 1)


def partition_type(recipe: Recipe, sources: Collection[Source], types: Mapping[str, Mapping[str, str]]) -> str:
    """The SQL type in which the values of all sources' `partition_by` compare.

    Args:
        recipe: for the message.
        sources: that are partitioned.
        types: of the columns of every source.

    Raises:
        UserError: there is none.
    """
    found = {source.name: types[source.name][str(source.partition_by)] for source in sources}
    common = unify(found.values())
    if common is None:
        listed = " and ".join(f"{kind} in {name!r}" for name, kind in found.items())
        raise UserError(f"{recipe.origin}: [sources]: partition_by is {listed}; cast it, or write the files anew")
    return common


def partition_key(source: Source, sql_type: str, partitions: int) -> str:
    """SQL of the number of a row's partition; values of `partition_by` compare as `sql_type`."""
    return f"hash(cast({quote(str(source.partition_by))} as {sql_type})) % {partitions}"


def partition_by(
    db: duckdb.DuckDBPyConnection, source: Source, types: dict[str, str], sql_type: str, partitions: int, path: Path
) -> Iterator[int]:
    """Write the rows of a source into partitions; yields the number of rows written so far.

    Args:
        db: the database.
        source: with `partition_by`.
        types: of its columns.
        sql_type: in which the values of `partition_by` compare.
        partitions: how many.
        path: file to write.
    """
    key = f"cast({partition_key(source, sql_type, partitions)} as usmallint)"
    columns = [quote(name) for name, kind in types.items() if not refusal(kind)]
    query = f"select {', '.join([*columns, key])} from {quote(source.name)}"
    # What a log is joined with is smaller.
    with joined_as_written(db):
        yield from scatter(arrow_batches(db, query, CHUNK_ROWS), partitions, path)


def iter_partitions(
    db: duckdb.DuckDBPyConnection, types: Mapping[str, dict[str, str]], partitions: int, paths: Mapping[str, Path]
) -> Iterator[int]:
    """Make the views of sources show one partition after the other; yields their numbers.

    Args:
        db: the database.
        types: of the columns, by source.
        partitions: how many.
        paths: files of the partitions, by source.
    """
    for partition in range(partitions):
        for name, path in paths.items():
            show(db, Stored(path, partition, partitions), quote(name), types[name])
        yield partition
    for name, path in paths.items():
        db.execute(f"drop view {quote(name)}")
        remove(path)
