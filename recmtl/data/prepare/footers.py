"""The ends of Parquet files: which columns of which types they hold, and within what bounds."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.prepare.duck import is_out_of_memory, literal, message
from recmtl.data.prepare.types import MOST_DIGITS, TOO_LONG
from recmtl.errors import UserError
from recmtl.runtime.storage import open_read

THREADS = 8
"""That read footers: most of the time goes by waiting for the disk."""
FILES_AT_ONCE = 4 * THREADS
"""Footers that lie in memory together, at most."""
NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
DAY = 86400 * NANOSECONDS["s"]


@dataclass
class Schema:
    """Files with the same columns of the same types."""

    types: dict[str, str]
    """SQL types as DuckDB reads them, by name, in the order of the files."""
    files: list[Path]
    rows: int


def read_schemas(db: duckdb.DuckDBPyConnection, files: list[Path]) -> list[Schema]:
    """The different schemas of files, in the order of their first files.

    Raises:
        UserError: a file is not Parquet, or has two columns of one name.
    """
    kept: dict[tuple[str, ...], Schema] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(files), FILES_AT_ONCE):
            some = files[start : start + FILES_AT_ONCE]
            for path, (key, rows) in zip(some, pool.map(_key, some), strict=True):
                schema = kept.setdefault(key, Schema({}, [], 0))
                schema.files.append(path)
                schema.rows += rows
            # A footer and its schema hold each other: Python frees them when it looks for such circles, and does so by
            # the number of objects, of which a footer of many megabytes is one.
            gc.collect()
    merged: dict[tuple[tuple[str, str], ...], Schema] = {}
    for schema in kept.values():
        schema.types = _types(db, schema.files[0])
        first = merged.setdefault(tuple(schema.types.items()), schema)
        if first is not schema:
            first.files += schema.files
            first.rows += schema.rows
    return list(merged.values())


def read_footer(path: Path) -> pq.FileMetaData:
    """The footer of a file.

    Raises:
        UserError: it has none.
    """
    try:
        with open_read(path) as file:
            return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(unreadable(path, error)) from None


def unreadable(path: Path, error: Exception | str) -> str:
    """What to say of a file that is damaged."""
    reason = " ".join(str(error).split())
    return f"{path}: not readable as Parquet ({reason}); it may be cut short, fetch or write it again"


def scan(files: Iterable[Path], options: str = "") -> str:
    """SQL that reads these files; the path of each, in the column that the options name, is absolute."""
    paths = ", ".join(literal(_escape(str(path.absolute()))) for path in files)
    # Both would be guessed from the first file.
    return f"read_parquet([{paths}], hive_partitioning = false, union_by_name = false{options})"


def _escape(path: str) -> str:
    """A glob that matches just this path."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _key(path: Path) -> tuple[tuple[str, ...], int]:
    """What tells one schema from another, as text, so that no footer is held; and the number of rows."""
    footer = read_footer(path)
    _address, _, schema = str(footer.schema).partition("\n")
    return (schema, *map(str, footer.schema.to_arrow_schema().types)), footer.num_rows


def _types(db: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    footer = read_footer(path)
    schema = footer.schema.to_arrow_schema()
    if not schema.names and not footer.num_rows:
        return {}
    seen: dict[str, str] = {}
    for name in schema.names:
        if (first := seen.setdefault(fold(name), name)) is not name:
            raise UserError(
                f"{path}: two columns, {first!r} and {name!r}, whose names differ in no more than capitals; write the "
                "file anew with other names"
            )
    try:
        described = db.execute(f"describe select * from {scan([path])}").fetchall()
    except duckdb.Error as error:
        if is_out_of_memory(error):
            raise
        raise UserError(unreadable(path, message(error))) from None
    return {
        name: _label(sql_type, column) for (name, sql_type, *_), column in zip(described, schema.types, strict=True)
    }


def fold(name: str) -> str:
    """A column's name as DuckDB compares it: only the letters A to Z have capitals."""
    return name.encode().lower().decode()


def _label(sql_type: str, column: pa.DataType) -> str:
    """The SQL type; with the Arrow type where DuckDB does not see what the values mean."""
    leaves = list(_leaves(column))
    if any(pa.types.is_decimal(leaf) and leaf.precision > MOST_DIGITS for leaf in leaves):
        return f"{column} {TOO_LONG}"
    return f"{sql_type} ({column})" if any(map(pa.types.is_duration, leaves)) else sql_type


def _leaves(column: pa.DataType) -> Iterator[pa.DataType]:
    """The types of the physical columns that a column consists of."""
    if isinstance(column, pa.BaseExtensionType):
        yield from _leaves(column.storage_type)
    elif pa.types.is_map(column):
        yield from _leaves(column.key_type)
        yield from _leaves(column.item_type)
    elif pa.types.is_struct(column):
        for field in column:
            yield from _leaves(field.type)
    elif pa.types.is_nested(column):
        yield from _leaves(column.value_type)
    else:
        yield column


def first_beyond(files: list[Path], place: int, limit: int) -> Path | None:
    """The first file whose footer does not show that the values of its column number `place` are within ±`limit`."""
    for number, path in enumerate(files, 1):
        if not _is_within(read_footer(path), place, limit):
            return path
        if number % FILES_AT_ONCE == 0:
            gc.collect()  # as in `read_schemas`
    return None


def _is_within(footer: pq.FileMetaData, place: int, limit: int) -> bool:
    types = footer.schema.to_arrow_schema().types
    leaf = next(_leaves(types[place]))
    column = sum(1 for before in types[:place] for _ in _leaves(before))
    chunks = (footer.row_group(group).column(column) for group in range(footer.num_row_groups))
    return all(_chunk_is_within(chunk, leaf, limit) for chunk in chunks)


def _chunk_is_within(chunk: pq.ColumnChunkMetaData, leaf: pa.DataType, limit: int) -> bool:
    statistics = chunk.statistics
    if statistics is None or not statistics.has_min_max:
        return statistics is not None and statistics.has_null_count and statistics.null_count == chunk.num_values
    if pa.types.is_integer(leaf):
        return -limit <= statistics.min and statistics.max <= limit
    unit = DAY if pa.types.is_date(leaf) else NANOSECONDS[leaf.unit]
    return -limit <= statistics.min_raw * unit and statistics.max_raw * unit <= limit
