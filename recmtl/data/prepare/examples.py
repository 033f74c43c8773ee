"""The recipe's query as a table of examples, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from recmtl.data.prepare.duck import arrow_batches, column_types, plain_arrow, quote, refusal
from recmtl.data.prepare.factorized import CODE, FactorizedRows, even_batches
from recmtl.data.prepare.queries import create_query_view
from recmtl.data.prepare.sources import FILE_ROW_NUMBER, FILENAME, columns_hint
from recmtl.data.prepare.stored import BATCH_ROWS, show
from recmtl.data.recipe import FeatureSpec, Recipe
from recmtl.encoding.encoder import Encoder
from recmtl.encoding.values import ARROW_TYPES, value_type
from recmtl.errors import UserError
from recmtl.features import KINDS, DenseKind, TableKind
from recmtl.features.categorical import is_simple
from recmtl.schema import FLOATS, Feature, Table, is_number

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
ORDER = '"#order"'
"""UBIGINT: hash of all that the recipe reads of a row, labels left out; numbers rows of the same `HASH`."""
SPLIT_VALUE = '"#split value"'
"""The split's column."""
SEGMENT = "#segment "
"""Begins the names of the columns with the values of the recipe's segments, as text."""
OWN = [name.strip('"') for name in (HASH, SPLIT, ROW, SPLIT_KEY, ORDER, SPLIT_VALUE)]
FETCH_ROWS = 2**13
"""Rows that the engine yields at a time: of long lists, more would take much of the memory, several times."""


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
        check_feature(feature, types, f"{where}: [[feature]] {feature.name!r}")
    for task in recipe.tasks:
        entry = f"{where}: [[task]] {task.name!r}"
        wanted = "a boolean or 0 and 1" if task.kind == "binary" else "a number"
        _check_number(types, task.label, f"{entry}: label", wanted)
        _check_number(types, task.oracle, f"{entry}: oracle", "a probability")
        _check_number(types, task.row_weight, f"{entry}: row_weight", "a number")
    _check_number(types, recipe.weight, f"{where}: weight", "a number")
    for column in recipe.split.key:
        _type(types, column, f"{where}: [split]: key")
    for column in recipe.segments:
        if not is_simple(sql_type := _type(types, column, f"{where}: segments")):
            raise UserError(f"{where}: segments: column {column!r} is {sql_type}; a segment is a single value")
    if recipe.split.column is not None:
        _check_split_column(recipe, types, recipe.split.column)
    if recipe.group is not None and not is_simple(sql_type := _type(types, recipe.group, f"{where}: group")):
        raise UserError(
            f"{where}: group: column {recipe.group!r} is {sql_type}; a user is a single value: cast it in sql"
        )


def _type(types: dict[str, str], column: str, where: str) -> str:
    if column.lower() in OWN or column.lower().startswith((CODE, SEGMENT)):
        raise UserError(f"{where}: {column!r} is a name that recmtl uses itself; call the column otherwise in sql")
    if column not in types:
        raise UserError(f"{where}: sql yields no column {column!r}; {columns_hint(column, types)}")
    if line := refusal(types[column]):
        raise UserError(f"{where}: {line}")
    return types[column]


def _check_number(types: dict[str, str], column: str | None, where: str, wanted: str) -> None:
    if column is not None and not is_number(sql_type := _type(types, column, where)):
        raise UserError(f"{where}: column {column!r} is {sql_type}; it must be {wanted}: cast it in sql")


def _check_split_column(recipe: Recipe, types: dict[str, str], column: str) -> None:
    sql_type = _type(types, column, f"{recipe.origin}: [split]: column")
    is_time = sql_type == "DATE" or sql_type.startswith("TIMESTAMP") or (is_number(sql_type) and sql_type != "BOOLEAN")
    if recipe.split.by == "time" and not is_time:
        found = f"{recipe.origin}: [split]: column {column!r} is {sql_type}"
        raise UserError(f"{found}; by = 'time' needs a number, a date or a timestamp: cast it in sql")


def check_feature(feature: FeatureSpec, types: dict[str, str], where: str) -> None:
    """Raise UserError unless a feature's column is there and of a type that its kind takes."""
    sql_type = _type(types, feature.column, f"{where}: column")
    against = KINDS[feature.kind].check(feature.column, sql_type, feature.separator)
    if against:
        raise UserError(f"{where}: column {feature.column!r} is {sql_type}{against}")


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


def _split_value(column: str, sql_type: str) -> str:
    """The split's column, in which -0.0 is 0.0: they are the same time."""
    name = quote(column)
    if sql_type in FLOATS:
        return f"case when {name} = 0 then cast(0 as {sql_type}) else {name} end"
    if sql_type in ("HUGEINT", "UHUGEINT"):
        return f"cast({name} as DECIMAL(38, 0))"
    return for_arrow(column, sql_type)


def _segment_value(column: str, sql_type: str) -> str:
    """The value of a segment as text, in which NaN is missing and -0.0 is 0.0."""
    if sql_type in FLOATS:
        return f"nullif(cast({quote(column)} + 0 as VARCHAR), 'nan')"
    return f"cast({quote(column)} as VARCHAR)"


def hash_of(columns: Iterable[str]) -> str:
    """UBIGINT: hash of some SQL expressions together."""
    # Twice, as the hash of several values is little more than an exclusive or of theirs.
    return f"hash(hash({', '.join(columns)}))"


def create_selected(db: duckdb.DuckDBPyConnection, recipe: Recipe, types: dict[str, str], condition: str = "") -> None:
    """Create the view `SELECTED`: the columns that the recipe uses, and the hashes of those that identify a row.

    Args:
        db: the database.
        recipe: names the columns.
        types: of the query's columns.
        condition: which of the query's rows are wanted, as `` where ...``; empty: all.
    """
    read = [column for column in recipe.read_columns if column not in recipe.predicted]
    columns = [f"{for_arrow(name, types[name])} as {quote(name)}" for name in recipe.read_columns]
    columns += [quote(name) for name in recipe.predicted if name not in recipe.read_columns]
    columns += [f"{_segment_value(name, types[name])} as {quote(SEGMENT + name)}" for name in recipe.segments]
    columns.append(f"{hash_of(map(quote, key_columns(recipe, types)))} as {HASH}")
    columns.append(f"{hash_of(map(quote, read))} as {ORDER}")
    split = recipe.split
    if split.key:
        columns.append(f"{hash_of(map(quote, split.key))} as {SPLIT_KEY}")
    if split.column is not None:
        columns.append(f"{_split_value(split.column, types[split.column])} as {SPLIT_VALUE}")
    db.execute(f"create view {SELECTED} as select {', '.join(columns)} from {ROWS}{condition}")


def for_arrow(column: str, sql_type: str) -> str:
    """A column in a type that Arrow has and the encoder reads: what is none of these comes as text."""
    items = sql_type.removesuffix("[]")
    if items in ("TIMESTAMP_S", "TIMESTAMP_MS"):
        wanted = "TIMESTAMP"
    elif items in ("HUGEINT", "UHUGEINT") or not (items in ARROW_TYPES or is_number(items) or items.endswith("]")):
        wanted = "VARCHAR"
    else:
        return quote(column)
    return f"cast({quote(column)} as {wanted}{sql_type[len(items) :]})"


def make_encoder(db: duckdb.DuckDBPyConnection, recipe: Recipe, types: dict[str, str]) -> Encoder:
    """The encoder of the recipe's features, before it has seen a row.

    Raises:
        UserError: the features of a table have values that do not compare.
    """
    schema = selected_schema(db)
    names = dict.fromkeys(feature.column for feature in recipe.features)
    features = tuple(_feature(spec, types[spec.column]) for spec in recipe.features)
    tables = tuple(
        Table(spec.name, 0, spec.dim, value_type=_value_type(recipe, spec.name, types)) for spec in recipe.tables
    )
    return Encoder(features, tables, {}, pa.schema([schema.field(name) for name in names]))


def _feature(spec: FeatureSpec, sql_type: str) -> Feature:
    """What is known of a feature before a row is read."""
    kind = KINDS[spec.kind]
    shared = ("name", "kind", "column", "pooling", "transform", "max_length", "separator", "history", "target")
    width = kind.dense_width(sql_type) if issubclass(kind, DenseKind) else 0
    return Feature(**{key: getattr(spec, key) for key in shared}, table=spec.table or None, width=width)


def _value_type(recipe: Recipe, table: str, types: dict[str, str]) -> str:
    found = {}
    for spec in recipe.features_of(table):
        kind = KINDS[spec.kind]
        assert issubclass(kind, TableKind)
        found[spec.name] = kind.value_sql_type(types[spec.column], spec.separator)
    value_types = set(map(value_type, found.values()))
    if len(value_types) > 1:
        listed = ", ".join(f"{name} is {sql_type}" for name, sql_type in found.items())
        raise UserError(f"{recipe.origin}: [[table]] {table!r}: its features differ in type ({listed}); cast in sql")
    return value_types.pop()


def other_columns(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> pa.Schema:
    """Names and types of the columns of `SELECTED` that are no features, or are needed beside them, and of `ROW`."""
    schema = selected_schema(db)
    features = {feature.column for feature in recipe.features} - {recipe.group, *recipe.predicted}
    fields = [field for field in schema if field.name not in features]
    return pa.schema([*fields, pa.field(ROW.strip('"'), pa.int64())])


def selected_schema(db: duckdb.DuckDBPyConnection) -> pa.Schema:
    """Names and types of the columns of `SELECTED`, as Arrow has them."""
    with plain_arrow(db):
        return arrow_batches(db, f"select * from {SELECTED} limit 0", BATCH_ROWS).schema


def show_stored(db: duckdb.DuckDBPyConnection, rows: FactorizedRows, types: dict[str, str]) -> None:
    """Create the view `STORED` of rows.

    Args:
        db: the database.
        rows: all stored.
        types: of the columns of `SELECTED`.
    """
    show(db, rows.stored(), STORED, {name: types.get(name, "BIGINT") for name in rows.others.names})


def query_batches(db: duckdb.DuckDBPyConnection, partitions: Iterable[object]) -> Iterator[pa.RecordBatch]:
    """What `SELECTED` yields on every partition that its views show, in batches of about the same size."""
    for _ in partitions:
        yield from even_batches(arrow_batches(db, f"select * from {SELECTED}", FETCH_ROWS))


def check_not_empty(recipe: Recipe, rows: int, unlabelled: int, where: str) -> None:
    """Raise UserError if the query yielded no rows, or none with a label.

    Args:
        recipe: of the query.
        rows: how many it yielded.
        unlabelled: rows without a label.
        where: between which moments rows were asked for, in words; empty: anywhere.
    """
    if not rows:
        found = f"no label in any of {unlabelled:,} rows" if unlabelled else "no rows"
        raise UserError(f"{recipe.origin}: sql yields {found} {where}{' ' if where else ''}from these files")


def splits_and_hashes(db: duckdb.DuckDBPyConnection, folder: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """`SPLIT` (uint8) and `HASH` (uint64) of every row in the order of `ROW`, mapped from files in a folder."""
    splits = np.memmap(folder / "splits", np.uint8, "w+", shape=(rows,))
    hashes = np.memmap(folder / "hashes", np.uint64, "w+", shape=(rows,))
    for batch in arrow_batches(db, f"select {ROW}, {SPLIT}, {HASH} from {EXAMPLES}", BATCH_ROWS):
        row, split, key = (column.to_numpy() for column in batch.columns)
        splits[row], hashes[row] = split, key
    return splits, hashes
