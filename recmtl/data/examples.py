"""The recipe's query as a table of examples, checked and dealt into splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from recmtl.data.dataset import SPLITS
from recmtl.data.duck import arrow_batches, column_types, first_row, literal, quote, refusal
from recmtl.data.queries import create_query_view
from recmtl.data.recipe import FeatureSpec, Recipe
from recmtl.data.sources import columns_hint
from recmtl.data.stored import BATCH_ROWS, Stored, show
from recmtl.errors import UserError

ROWS = '"#rows"'
"""View: the recipe's query."""
SELECTED = '"#selected"'
STORED = '"#stored"'
"""View: what the query yielded, on disk, with `ROW`."""
EXAMPLES = '"#examples"'
"""View: the columns that the recipe uses, with `HASH`, `SPLIT` and `ROW`."""
HASH = '"#hash"'
"""UBIGINT: hash of the whole row. It deals rows into splits and shuffles them."""
SPLIT = '"#split"'
"""UTINYINT: index into `SPLITS`."""
ROW = '"#row"'
"""BIGINT: number of the row, until it is shuffled."""
KEY = '"#key"'
MOMENT = '"#moment"'

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
    for key, columns in (("key", recipe.split.key), ("column", (recipe.split.column,))):
        for column in columns:
            if column is not None:
                _type(types, column, f"{where}: [split]: {key}")
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


def _check_feature(feature: FeatureSpec, types: dict[str, str], where: str) -> None:
    kind = _type(types, feature.column, f"{where}: column")
    found = f"{where}: column {feature.column!r} is {kind}"
    if feature.kind == "numeric" and not _is_number(kind):
        raise UserError(f"{found}; a numeric feature needs a number")
    if feature.separator and kind != "VARCHAR":
        raise UserError(f"{found}; separator is for text")
    if feature.kind == "list" and not feature.separator and not kind.endswith("[]"):
        raise UserError(f"{found}; a list feature needs a list, or separator = ',' for text")
    value = kind[:-2] if feature.kind == "list" and not feature.separator else kind
    if value.startswith(("STRUCT", "MAP", "UNION")) or value.endswith("]"):
        raise UserError(f"{found}; " + ("set kind = 'list'" if value.endswith("[]") else "its values must be simple"))


def create_selected(db: duckdb.DuckDBPyConnection, recipe: Recipe, types: dict[str, str]) -> None:
    """Create the view `SELECTED`: the columns that the recipe uses, and the hash of all."""
    used = [feature.column for feature in recipe.features] + [task.label for task in recipe.tasks]
    used += [task.oracle for task in recipe.tasks if task.oracle] + ([recipe.group] if recipe.group else [])
    columns = [quote(name) for name in dict.fromkeys(used)]
    columns.append(f"hash({', '.join(map(quote, types))}) as {HASH}")
    split = recipe.split
    if split.key:
        columns.append(f"hash({', '.join(map(quote, split.key))}) as {KEY}")
    if split.column is not None:
        columns.append(f"{quote(split.column)} as {MOMENT}")
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
    rows = _count(db)
    if not rows:
        raise UserError(f"{recipe.origin}: sql yields no rows from these files")
    return rows


def _count(db: duckdb.DuckDBPyConnection, condition: str = "true") -> int:
    row = first_row(db, f"select count(*) from {STORED} where {condition}")
    return row[0] if row else 0


def deal(db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: int) -> None:
    """Create the view `EXAMPLES`, in which every row has its split.

    Raises:
        UserError: a row has no time, or no known split.
    """
    rules: dict[str, Callable[[duckdb.DuckDBPyConnection, Recipe, int], str]]
    rules = {"random": _random, "time": _time, "column": _column}
    rule = rules[recipe.split.by](db, recipe, rows)
    db.execute(f"create view {EXAMPLES} as select *, cast({rule} as utinyint) as {SPLIT} from {STORED}")


def _random(db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: int) -> str:
    split = recipe.split
    column = KEY if split.key else HASH
    train = 1 - split.val_fraction - split.test_fraction
    return (
        f"case when {_below(column, train)} then 0 when {_below(column, train + split.val_fraction)} then 1 else 2 end"
    )


def _below(column: str, fraction: float) -> str:
    """Whether a hash is among the lowest `fraction` of all hashes."""
    return f"{column} <= {int(fraction * 2**53) * 2**11 - 1}" if fraction > 0 else "false"


def _time(db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: int) -> str:
    """The last rows by time; the hash decides between rows of the same time, so that the counts are exact."""
    split = recipe.split
    if missing := _count(db, f"{MOMENT} is null"):
        raise UserError(
            f"{recipe.origin}: [split]: column {split.column!r} is null in {missing} rows; leave them out in sql"
        )
    test = round(rows * split.test_fraction)
    val = round(rows * split.val_fraction)
    return f"case when {_from_rank(db, rows - test)} then 2 when {_from_rank(db, rows - test - val)} then 1 else 0 end"


def _from_rank(db: duckdb.DuckDBPyConnection, rank: int) -> str:
    """Whether a row is not among the first `rank` ones by time."""
    query = f"select cast({MOMENT} as varchar), {HASH}, typeof({MOMENT}) from {STORED}"
    first = first_row(db, f"{query} order by {MOMENT}, {HASH} limit 1 offset {rank}")
    if first is None:
        return "false"
    moment = f"cast({literal(first[0])} as {first[2]})"
    return f"{MOMENT} > {moment} or ({MOMENT} = {moment} and {HASH} >= {first[1]})"


def _column(db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: int) -> str:
    split = recipe.split
    names = f"cast({MOMENT} as varchar)"
    known = ", ".join(literal(name) for name in SPLITS)
    found = db.execute(f"select {names}, count(*) from {STORED} group by 1 order by 2 desc").fetchall()
    for name, count in found:
        if name not in SPLITS:
            value = "null" if name is None else repr(name)
            raise UserError(
                f"{recipe.origin}: [split]: column {split.column!r} is {value} in {count} rows; it must be {known}"
            )
    rule = f"when {names} = 'test' then 2 when {names} = 'val' then 1"
    if "val" not in dict(found):
        rule += f" when {_below(HASH, split.val_fraction)} then 1"
    return f"case {rule} else 0 end"
