"""Which row of the raw files, or of the query, has a history whose columns differ in length."""

from __future__ import annotations

import contextlib

import duckdb
import pyarrow as pa

from recmtl.data.prepare.duck import column_types, first_row, quote
from recmtl.data.prepare.examples import SPLIT_VALUE, for_arrow
from recmtl.data.prepare.sources import FILE_ROW_NUMBER, FILENAME
from recmtl.data.recipe import Recipe
from recmtl.encoding.histories import Misaligned
from recmtl.errors import UserError

MOST_VALUES = 4
"""Values by which a row is named; more only where the recipe itself names more columns that tell rows apart."""
MOST_CHARACTERS = 60
"""Of such a value."""


def misaligned(
    recipe: Recipe, batch: pa.RecordBatch, error: Misaligned, db: duckdb.DuckDBPyConnection | None = None
) -> UserError:
    """The error of a query's row, which is named as a user can find it.

    It is named by file and row number where the query yields them or a source has both columns as they are; else by the
    user, the split's columns, those that sources are partitioned by and single-valued features; else by its number.

    Args:
        recipe: of the query.
        batch: what the query yielded.
        error: about a row of the batch.
        db: with the views of the sources; None: they are out of reach.
    """
    row = batch.slice(error.row, 1)
    place = _place(row) or (db and _place_in_sources(db, recipe, row, error.columns))
    found = f"row {place[1]} (counted from 0) of {place[0]}" if place else _values(recipe, row)
    return UserError(f"{recipe.origin}: sql yields rows with {error.of(found) if found else error}")


def _place(row: pa.RecordBatch) -> tuple[str, int] | None:
    if not {FILENAME, FILE_ROW_NUMBER} <= set(row.schema.names):
        return None
    name, number = (row.column(column)[0].as_py() for column in (FILENAME, FILE_ROW_NUMBER))
    return None if name is None or number is None else (name, number)


def _place_in_sources(
    db: duckdb.DuckDBPyConnection, recipe: Recipe, row: pa.RecordBatch, columns: tuple[str, str]
) -> tuple[str, int] | None:
    """The first raw row with the same values in both columns."""
    wanted = pa.Table.from_batches([row]).select(list(dict.fromkeys(columns)))
    for source in recipe.sources:
        # The columns may be computed, or of other types: then the source has no such row.
        with contextlib.suppress(duckdb.Error):
            types = column_types(db, quote(source.name))
            if not {*columns, FILENAME, FILE_ROW_NUMBER} <= types.keys():
                continue
            selected = ", ".join(f"{for_arrow(name, types[name])} as {quote(name)}" for name in wanted.column_names)
            alike = " and ".join(f"a.{quote(n)} is not distinct from b.{quote(n)}" for n in wanted.column_names)
            db.register("#misaligned", wanted)
            there = f"select {selected}, {FILENAME}, {FILE_ROW_NUMBER} from {quote(source.name)}"
            query = f'select {FILENAME}, {FILE_ROW_NUMBER} from ({there}) a, "#misaligned" b where {alike}'
            if found := first_row(db, f"{query} order by all limit 1"):
                return found[0], found[1]
    return None


def _values(recipe: Recipe, row: pa.RecordBatch) -> str:
    """What the row has in columns that tell rows apart, in words; empty where it has no such column."""
    split, names = recipe.split, row.schema.names
    own = [recipe.group, *(source.partition_by for source in recipe.partitioned_sources), *split.key]
    there = {name: row.column(name) for name in own if name in names}
    for place in (split.column, SPLIT_VALUE.strip('"')):
        if split.column is not None and place in names:
            there[split.column] = row.column(place)
    single = [feature.column for feature in recipe.features if feature.column in names and feature.column not in there]
    single = [name for name in single if not pa.types.is_nested(row.schema.field(name).type)]
    there |= {name: row.column(name) for name in single[: max(0, MOST_VALUES - len(there))]}
    listed = ", ".join(f"{name} = {_shown(values[0].as_py())}" for name, values in there.items())
    return listed and f"the row with {listed}"


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str | bytes) else "null" if value is None else str(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
