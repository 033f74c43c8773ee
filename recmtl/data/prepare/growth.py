"""The vocabulary of an earlier day, grown by the values of new rows.

    earlier values ──expired ones lose their ids──▶ kept ids
    values of new training rows and counts of those too rare so far ──min_count, max_rows──▶ new values
        ──ids that are free, then further ones──▶ the new generation

Values that stay keep their ids. Values that are too rare are counted on, from one extension to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.prepare.duck import arrow_batches, first_row, literal
from recmtl.data.prepare.vocabularies import BATCH_ROWS, count_schema, digest, value_schema
from recmtl.data.recipe import TableSpec
from recmtl.encoding.generations import Generations
from recmtl.encoding.vocabulary import Hashed, Vocabulary
from recmtl.runtime.storage import is_file, local_path, make_folder
from recmtl.schema import ENCODER, FIRST, PENDING, VOCABULARIES, Dataset, Table, TableGrowth


@dataclass(frozen=True)
class Grown:
    """A table of the new generation."""

    table: Table
    lookup: Vocabulary | Hashed
    generations: Generations | None
    """None: of a hashed table, whose ids stay what they are."""
    counts: TableGrowth | None
    """None: of a hashed table."""


def count_pending(db: duckdb.DuckDBPyConnection, table: Table, counts: Iterable[pa.RecordBatch], out: Path) -> None:
    """Write the values that are too rare for an id, with their counts, into ``OUT/pending/TABLE.parquet``.

    The vocabulary's file must be there.
    """
    _create_counts(db, table, counts, 0)
    vocabulary = literal(str(local_path(out / VOCABULARIES / f"{table.name}.parquet")))
    _write_pending(db, f'select * from "#seen" where value not in (select value from {vocabulary})', table, out)
    db.execute('drop table "#seen"')


def grow(
    db: duckdb.DuckDBPyConnection,
    counts: Callable[[TableSpec], Iterable[pa.RecordBatch]],
    spec: TableSpec,
    parent: tuple[Path, Dataset],
    out: Path,
) -> Grown:
    """A table of the new generation, with its vocabulary and the counts of rarer values in `out`.

    Args:
        db: counts what does not fit into memory.
        counts: how often values of a table occur in the new rows that count.
        spec: what the recipe says of the table.
        parent: the folder that is extended, and what it holds.
        out: the folder that is written.
    """
    folder, dataset = parent
    before = dataset.table(spec.name)
    if before.hashed:
        return Grown(before, Hashed(before.rows), None, None)
    generation = dataset.generation + 1
    _create_counts(db, before, counts(spec), generation)
    known = literal(str(local_path(folder / VOCABULARIES / f"{spec.name}.parquet")))
    db.execute(f'create table "#known" as select value, id from {known}')
    oldest = 0 if spec.expire is None else generation - spec.expire + 1
    _create_candidates(db, folder / PENDING / f"{spec.name}.parquet", spec.min_count, oldest)
    generations = Generations.load(folder / ENCODER, before)
    assigned, seen = np.array(generations.assigned), np.array(generations.seen)

    ids = _column(db, 'select id from "#known"')
    seen[_column(db, 'select id from "#known" semi join "#seen" using (value)')] = generation
    alive = np.zeros(before.rows, bool)
    alive[ids] = True
    if spec.expire is not None:
        alive &= seen >= oldest
    found = first_row(db, 'select count(*) from "#candidates"')
    new = found[0] if found else 0
    if spec.max_rows is not None:
        room = spec.max_rows - FIRST
        # What was seen longest ago goes first and, of those, what was rarer when it got its id; today's stay.
        stale = np.flatnonzero(alive & (seen < generation))
        stale = stale[np.lexsort((-stale, seen[stale]))]
        alive[stale[: max(0, int(alive.sum()) + new - room)]] = False
        new = min(new, max(0, room - int(alive.sum())))
    free = np.flatnonzero(~alive[FIRST:]) + FIRST
    given = np.concatenate([free[:new], np.arange(before.rows, before.rows + max(0, new - len(free)))])
    size = max(before.rows, int(given[-1]) + 1 if new else 0)
    assigned, seen = (np.append(part, np.zeros(size - before.rows, np.int32)) for part in (assigned, seen))
    assigned[given] = seen[given] = generation

    _write_vocabulary(db, before, alive, given, out / VOCABULARIES)
    left = f'(select * from "#candidates" order by seen desc, value offset {new})'
    waiting = _write_pending(db, f'select * from {left} union all select * from "#rare"', before, out)
    for name in ("#seen", "#known", "#candidates", "#rare"):
        db.execute(f'drop table "{name}"')
    vocabulary = Vocabulary.build(out / VOCABULARIES / f"{spec.name}.parquet", before.value_type)
    table = replace(before, rows=size, vocabulary=digest(vocabulary.keys, vocabulary.ids, assigned))
    if not new and alive[ids].all():
        table = before
    growth = TableGrowth(new, len(ids) - int(alive.sum()), waiting)
    return Grown(table, vocabulary, Generations(assigned, seen), growth)


def _create_counts(
    db: duckdb.DuckDBPyConnection, table: Table, counts: Iterable[pa.RecordBatch], generation: int
) -> None:
    """How often every value occurs in the rows of a generation, in the table ``#seen``."""
    db.register("#counts", pa.RecordBatchReader.from_batches(count_schema(table), counts))
    db.execute(
        f'create table "#seen" as select value, sum("count")::bigint as seen, {generation} as latest '
        'from "#counts" group by value'
    )
    db.unregister("#counts")


def _create_candidates(db: duckdb.DuckDBPyConnection, pending: Path, min_count: int, oldest: int) -> None:
    """Values without an id: those that are frequent enough in ``#candidates``, others in ``#rare``.

    Counts of values that no generation from `oldest` on has seen are forgotten.
    """
    earlier = ""
    if is_file(pending):
        earlier = f" union all select value, seen, latest from {literal(str(local_path(pending)))}"
    db.execute(
        'create table "#all" as select value, sum(seen)::bigint as seen, max(latest) as latest '
        f'from (select * from "#seen"{earlier}) where value not in (select value from "#known") '
        f"group by value having max(latest) >= {oldest}"
    )
    for name, condition in (("#candidates", ">="), ("#rare", "<")):
        db.execute(f'create table "{name}" as select * from "#all" where seen {condition} {min_count}')
    db.execute('drop table "#all"')


def _column(db: duckdb.DuckDBPyConnection, query: str) -> np.ndarray:
    return db.execute(query).fetchnumpy()["id"]


def _write_vocabulary(
    db: duckdb.DuckDBPyConnection, table: Table, alive: np.ndarray, given: np.ndarray, folder: Path
) -> None:
    """Write the values that keep their ids, and as many candidates as there are ids for, by id."""
    db.register("#alive", pa.table({"id": np.flatnonzero(alive).astype(np.int32)}))
    db.register("#given", pa.table({"place": np.arange(len(given)), "given": given.astype(np.int32)}))
    query = (
        'select value, id from "#known" semi join "#alive" using (id) union all '
        "select value, given as id from (select value, row_number() over (order by seen desc, value) - 1 as place "
        'from "#candidates") join "#given" using (place) order by id'
    )
    schema = value_schema(table)
    with pq.ParquetWriter(local_path(folder / f"{table.name}.parquet"), schema) as file:
        for batch in arrow_batches(db, query, BATCH_ROWS):
            columns = [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)]
            file.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    for name in ("#alive", "#given"):
        db.unregister(name)


def _write_pending(db: duckdb.DuckDBPyConnection, query: str, table: Table, out: Path) -> int:
    """Write values, how often they were seen and by which generation last; no file where there are none.

    Returns:
        The number of values.
    """
    make_folder(out / PENDING)
    schema = pa.schema([value_schema(table).field("value"), ("seen", pa.int64()), ("latest", pa.int32())])
    batches = arrow_batches(db, f"{query} order by value", BATCH_ROWS)
    first = next((batch for batch in batches if batch.num_rows), None)
    if first is None:
        return 0
    written = 0
    with pq.ParquetWriter(local_path(out / PENDING / f"{table.name}.parquet"), schema) as file:
        for batch in (first, *batches):
            columns = [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)]
            file.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            written += batch.num_rows
    return written
