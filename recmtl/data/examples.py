"""The recipe's query as a table of examples, checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from recmtl.data.duck import arrow_batches, column_types, first_row, quote, refusal
from recmtl.data.queries import create_query_view
from recmtl.data.recipe import FeatureSpec, Recipe
from recmtl.data.sources import FILE_ROW_NUMBER, FILENAME, columns_hint
from recmtl.data.stored import BATCH_ROWS, Stored, show
from recmtl.errors import UserError

ROWS = '"#rows"'
"""View: the recipe's query."""
SELECTED = '"#selected"'
STORED = '"#stored"'
"""View: what the query yielded, on disk, with `HASH` and `ROW`."""
EXAMPLES = '"#examples"'
"""View: the columns that the recipe uses, with `HASH`, `SPLIT` and `ROW`."""
HASH = '"#hash"'
"""UBIGINT: hash of what identifies a row, its `key_columns`, and of its number among the rows alike in them.

It deals rows into splits and shuffles them; nothing that is predicted is in it."""
SPLIT = '"#split"'
"""UTINYINT: index into `SPLITS`."""
ROW = '"#row"'
"""BIGINT: number of the row, until it is shuffled."""
SPLIT_KEY = '"#split key"'
"""UBIGINT: hash of the columns of `split.key`."""
MOMENT = '"#moment"'
"""The split's column."""

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
FLOATS = ("FLOAT", "DOUBLE")


def create_query(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> dict[str, str]:
    """Create the view `ROWS`; return the names and types of its columns.

    Raises:
        UserError: the query is not one valid select; names the line.
    """
    create_query_view(db, ROWS, recipe.sql, f"{recipe.origin}: sql")
    return column_types(db, ROWS)


def check_columns(recipe: Recipe, types: dict[str, str]) -> None:
    """Check that every column the recipe names is there and of a type that fits.

    Raises:
        UserError: names the key and the column.
    """
    where = recipe.origin
    for feature in recipe.features:
        _check_feature(feature, types, f"{where}: [[feature]] {feature.name!r}")
    for task in recipe.tasks:
        entry = f"{where}: [[task]] {task.name!r}"
        kind = _type(types, task.label, f"{entry}: label")
        if not _is_number(kind):
            raise UserError(f"{entry}: label: column {task.label!r} is {kind}; it must be a boolean or 0 and 1")
        if task.oracle is not None and not _is_number(kind := _type(types, task.oracle, f"{entry}: oracle")):
            raise UserError(f"{entry}: oracle: column {task.oracle!r} is {kind}; it must be a probability")
    for column in recipe.split.key:
        _type(types, column, f"{where}: [split]: key")
    if recipe.split.column is not None:
        _check_split_column(recipe, types, recipe.split.column)
    if recipe.group is not None:
        _type(types, recipe.group, f"{where}: group")


def _type(types: dict[str, str], column: str, where: str) -> str:
    if column not in types:
        raise UserError(f"{where}: sql yields no column {column!r}; {columns_hint(column, types)}")
    if line := refusal(types[column]):
        raise UserError(f"{where}: {line}")
    return types[column]


def _is_number(kind: str) -> bool:
    return kind in (*INTEGERS, *FLOATS, "BOOLEAN") or kind.startswith("DECIMAL")


def _check_split_column(recipe: Recipe, types: dict[str, str], column: str) -> None:
    kind = _type(types, column, f"{recipe.origin}: [split]: column")
    is_time = kind == "DATE" or kind.startswith("TIMESTAMP") or (_is_number(kind) and kind != "BOOLEAN")
    if recipe.split.by == "time" and not is_time:
        found = f"{recipe.origin}: [split]: column {column!r} is {kind}"
        raise UserError(f"{found}; by = 'time' needs a number, a date or a timestamp: cast it in sql")


def _check_feature(feature: FeatureSpec, types: dict[str, str], where: str) -> None:
    kind = _type(types, feature.column, f"{where}: column")
    found = f"{where}: column {feature.column!r} is {kind}"
    if feature.kind == "numeric" and not _is_number(kind):
        raise UserError(f"{found}; a numeric feature needs a number")
    if feature.separator and kind != "VARCHAR":
        raise UserError(f"{found}; separator is for text")
    is_list = feature.kind == "list" and not feature.separator
    if is_list and re.search(r"\[\d+\]$", kind):
        raise UserError(f"{found}; cast it to a list in sql: {feature.column}::{kind[: kind.rindex('[')]}[]")
    if is_list and not kind.endswith("[]"):
        raise UserError(f"{found}; a list feature needs a list, or separator = ',' for text")
    value = kind[:-2] if is_list else kind
    if value.endswith("]") and (is_list or re.search(r"\].*\]$", value)):
        rest = "" if is_list else " and set kind = 'list'"
        raise UserError(f"{found}, a list of lists; flatten it in sql, as in flatten({feature.column}){rest}")
    if value.startswith(("STRUCT", "MAP", "UNION")) or value.endswith("]"):
        raise UserError(f"{found}; " + ("set kind = 'list'" if value.endswith("]") else "its values must be simple"))


def key_columns(recipe: Recipe, types: dict[str, str]) -> list[str]:
    """Columns that identify a row: its place in the raw files where the query yields it, else what the recipe reads.

    Neither labels nor true probabilities are among them, nor other columns, which could tell them: a split that depends
    on what is predicted gives test rows other base rates than training rows, even for the same features.
    """
    place = [FILENAME, FILE_ROW_NUMBER]
    if all(column in types and column not in recipe.predicted for column in place):
        return place
    columns = [*recipe.read_columns, *([recipe.split.column] if recipe.split.column else [])]
    return [column for column in dict.fromkeys(columns) if column not in recipe.predicted]


def _moment(column: str, kind: str) -> str:
    """The split's column, in which -0.0 is 0.0: they are the same time."""
    name = quote(column)
    return f"case when {name} = 0 then cast(0 as {kind}) else {name} end" if kind in FLOATS else name


def hash_of(columns: Iterable[str]) -> str:
    """UBIGINT: hash of some SQL expressions together."""
    # Twice, as the hash of several values is little more than an exclusive or of theirs.
    return f"hash(hash({', '.join(columns)}))"


def create_selected(db: duckdb.DuckDBPyConnection, recipe: Recipe, types: dict[str, str]) -> None:
    """Create the view `SELECTED`: the columns that the recipe uses, and the hashes of those that identify a row."""
    used = dict.fromkeys([*recipe.read_columns, *recipe.predicted])
    columns = [quote(name) for name in used]
    columns.append(f"{hash_of(map(quote, key_columns(recipe, types)))} as {HASH}")
    split = recipe.split
    if split.key:
        columns.append(f"{hash_of(map(quote, split.key))} as {SPLIT_KEY}")
    if split.column is not None:
        columns.append(f"{_moment(split.column, types[split.column])} as {MOMENT}")
    db.execute(f"create view {SELECTED} as select {', '.join(columns)} from {ROWS}")


def run_query(db: duckdb.DuckDBPyConnection, parts: Iterable[int], path: Path) -> Iterator[int]:
    """Run the query on every part that its views show, and store what it yields; yields the number of parts done."""
    columns = {**column_types(db, SELECTED), ROW.strip('"'): "BIGINT"}
    schema = arrow_batches(db, f"select *, cast(0 as bigint) as {ROW} from {SELECTED} limit 0", BATCH_ROWS).schema
    rows = 0
    with pa.ipc.new_file(path, schema) as file:
        for part in parts:
            for batch in arrow_batches(db, f"select * from {SELECTED}", BATCH_ROWS):
                number = pa.array(np.arange(rows, rows + batch.num_rows))
                file.write_batch(pa.RecordBatch.from_arrays([*batch.columns, number], schema=schema))
                rows += batch.num_rows
            yield part + 1
    show(db, Stored(path), STORED, columns)


def count_rows(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> int:
    """The number of examples.

    Raises:
        UserError: there are none.
    """
    row = first_row(db, f"select count(*) from {STORED}")
    rows = row[0] if row else 0
    if not rows:
        raise UserError(f"{recipe.origin}: sql yields no rows from these files")
    return rows
