"""The raw folder as SQL views."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.prepare.duck import (
    ENGINE_ERRORS,
    column_types,
    first_row,
    is_interrupted,
    is_of_the_system,
    literal,
    message,
    open_store,
    quote,
    refusal,
)
from recmtl.data.prepare.footers import Schema, fold, read_footer, read_schemas, scan, unreadable
from recmtl.data.prepare.hive import partition_columns
from recmtl.data.prepare.queries import create_query_view
from recmtl.data.prepare.raw_files import some
from recmtl.data.prepare.union import Column, having, unite
from recmtl.data.recipe import Recipe, Source
from recmtl.errors import UserError, is_out_of_memory
from recmtl.runtime.storage import open_read
from recmtl.schema import SourceColumns

FILENAME, FILE_ROW_NUMBER = "filename", "file_row_number"
"""Columns that a view of files has beside those of the files."""

QUERY_ERRORS = (
    "Binder",
    "Catalog",
    "Constraint",
    "Conversion",
    "Invalid Type",
    "Mismatch Type",
    "Out of Range",
    "Parser",
)
"""Kinds of errors that a damaged file never raises."""


@dataclass(frozen=True)
class Cut:
    """Where the rows of a source end before its files do."""

    source: str
    path: Path
    """The last file."""
    rows: int
    """Rows of the last file."""


@dataclass(frozen=True)
class FileView:
    """The query of a source of files."""

    branches: tuple[tuple[str, tuple[Path, ...]], ...]
    """What is selected, and the files of one schema that it is selected from."""
    options: str
    """Of the scan of files."""
    conditions: tuple[str, ...] = ()
    """That rows meet."""

    def where(self, condition: str) -> FileView:
        """The same, but only rows that meet a condition."""
        return replace(self, conditions=(*self.conditions, f"({condition})"))

    def sql(self, files: Container[Path] | None = None) -> str:
        """The query, of some of the files or of all."""
        found = []
        for selected, of_schema in self.branches:
            some = of_schema if files is None else tuple(path for path in of_schema if path in files)
            if some or not of_schema:
                found.append(f"select {selected} from {scan(some, self.options)}" if some else f"select {selected}")
        query = "\nunion all\n".join(found)
        return f"select * from ({query}) where {' and '.join(self.conditions)}" if self.conditions else query


@dataclass(frozen=True)
class Views:
    """The views of a recipe's sources."""

    files: dict[str, FileView]
    """Of the sources that are no queries."""
    lacking: SourceColumns
    """Columns that their files are known to have, and have not."""


def limit_files(recipe: Recipe, files: dict[str, list[Path]], limit: int) -> Cut | None:
    """Leave the first source of files only those that hold its first `limit` rows; None where it has no more rows.

    Raises:
        UserError: the limit makes no sense, or a file cannot be read.
    """
    if limit < 1:
        raise UserError(f"--limit: {limit} is out of range; the least is 1")
    first = next(source.name for source in recipe.sources if source.files)
    left = limit
    for number, path in enumerate(files[first]):
        rows = read_footer(path).num_rows
        if rows > left or (rows == left and number + 1 < len(files[first])):
            files[first] = files[first][: number + 1]
            return Cut(first, path, left)
        left -= rows
    return None


def create_views(
    db: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    files: dict[str, list[Path]],
    raw: Path,
    cut_short: Cut | None = None,
    known: SourceColumns | None = None,
    in_sight: Callable[[dict[str, str]], str | None] | None = None,
) -> Views:
    """Create a view a source; of files it has two more columns: filename (relative to `raw`) and file_row_number.

    The rows of one source may be cut short. A column whose types in several files have no type in common is a
    `refused_column`.

    Args:
        db: the database.
        recipe: its sources.
        files: of every source that has some.
        raw: their folder.
        cut_short: where the rows of a source end.
        known: columns that the files of a source are known to have: where all of them lack one, it is null.
        in_sight: of the types of a source's columns, the condition that its rows meet; None: all rows of all sources.

    Raises:
        UserError: a file cannot be read, or a source's query is not valid.
    """
    open_store(db, raw)
    found = Views({}, {})
    for source in recipe.sources:
        where = f"{recipe.origin}: [sources] {source.name!r}"
        columns = (known or {}).get(source.name, {})
        if source.sql:
            create_query_view(db, quote(source.name), source.sql, f"{where}: sql")
        elif files[source.name]:
            view, found.lacking[source.name] = _select(db, source, files[source.name], raw, columns)
            if cut_short is not None and source.name == cut_short.source:
                last = literal(cut_short.path.relative_to(raw).as_posix())
                view = view.where(f"{FILENAME} <> {last} or {FILE_ROW_NUMBER} < {cut_short.rows}")
            db.execute(f"create view {quote(source.name)} as {view.sql()}")
            if in_sight and (condition := in_sight(column_types(db, quote(source.name)))):
                view = view.where(condition)
                db.execute(f"create or replace view {quote(source.name)} as {view.sql()}")
            found.files[source.name] = view
        else:
            view = FileView(((_nulls({**columns, **source.columns}), ()),), "").where("false")
            create_query_view(db, quote(source.name), view.sql(), f"{where}: columns")
            found.files[source.name] = view
        _check_cut(db, source, where)
    return found


def source_columns(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> SourceColumns:
    """Names and types of the columns of every source of files that can be read, once its view is there."""
    found = {}
    for source in recipe.sources:
        if not source.sql:
            types = column_types(db, quote(source.name))
            found[source.name] = {name: sql_type for name, sql_type in types.items() if not refusal(sql_type)}
    return found


def _check_cut(db: duckdb.DuckDBPyConnection, source: Source, where: str) -> None:
    if source.partition_by is None:
        return
    types = column_types(db, quote(source.name))
    if source.partition_by not in types:
        if source.optional:  # which columns its files have is theirs to say
            return
        raise UserError(
            f"{where}: partition_by: no column {source.partition_by!r}; {columns_hint(source.partition_by, types)}"
        )
    if line := refusal(types[source.partition_by]):
        raise UserError(f"{where}: partition_by: {line}")


def columns_hint(column: str, names: Iterable[str]) -> str:
    """What to say to a user who named a column that is not there: the nearest one, and those that are their own."""
    near = get_close_matches(column, names, n=1)
    hint = f"did you mean {near[0]!r}? Its" if near else "its"
    return f"{hint} columns are {', '.join(name for name in names if name not in (FILENAME, FILE_ROW_NUMBER))}"


def _nulls(columns: dict[str, str]) -> str:
    columns = {**columns, FILENAME: "VARCHAR", FILE_ROW_NUMBER: "BIGINT"}
    return ", ".join(f"cast(null as {sql_type}) as {quote(name)}" for name, sql_type in columns.items())


def _select(
    db: duckdb.DuckDBPyConnection, source: Source, files: list[Path], raw: Path, known: dict[str, str]
) -> tuple[FileView, dict[str, str]]:
    """The query of a source's view, and the known columns that none of its files has."""
    schemas = read_schemas(db, files)
    columns = unite(schemas)
    if not columns:
        raise UserError(f"{some(files)}: no columns in any file of source {source.name!r}; write them again")
    if taken := having(schemas, FILE_ROW_NUMBER):
        raise UserError(
            f"{taken[0][0].files[0]}: has a column {FILE_ROW_NUMBER!r}, which in recipes is the number of a row in its "
            "file; write the file anew with another name for it"
        )
    # Files without rows only say which columns there are.
    read = [schema for schema in schemas if schema.rows] or [schema for schema in schemas if schema.types][:1]
    names = {fold(column.name): column.name for column in columns}
    path = _free(f"#{FILENAME}", names)
    # Relative, so that the examples do not depend on where the folder lies.
    relative = f"substr({quote(path)}, {len(str(raw.absolute() / 'x'))})"
    partitions = partition_columns(files, raw, relative, {*names, FILENAME, FILE_ROW_NUMBER})
    if FILENAME in names:
        names[FILENAME] = _free(f"{FILENAME}_1", {**names, **dict.fromkeys(map(fold, partitions))})
        _note(f"{having(schemas, FILENAME)[0][0].files[0]}: its own column {FILENAME!r} is called {names[FILENAME]!r}")
    for line in _absent(columns, read):
        _note(f"source {source.name!r}: {line}")
    extra = [f"{expression} as {quote(name)}" for name, expression in partitions.items()]
    there = set(map(fold, [*names.values(), *partitions, FILENAME, FILE_ROW_NUMBER]))
    lacking = {name: sql_type for name, sql_type in known.items() if fold(name) not in there}
    extra += [f"cast(null as {sql_type}) as {quote(name)}" for name, sql_type in lacking.items()]
    extra += [FILE_ROW_NUMBER, f"{relative} as {FILENAME}"]
    branches = []
    for schema in read:
        values = [f"{column.sql_for(schema)} as {quote(names[fold(column.name)])}" for column in columns]
        branches.append((", ".join(values + extra), tuple(schema.files)))
    return FileView(tuple(branches), f", filename = '{path}', file_row_number = true"), lacking


def _free(name: str, taken: Iterable[str]) -> str:
    """`name`, or the first longer one that is not taken."""
    return name if name not in taken else _free(f"{name}_1", taken)


def _absent(columns: list[Column], schemas: list[Schema]) -> Iterator[str]:
    """Which columns some files lack."""
    absent: dict[tuple[Path, ...], list[str]] = {}
    for column in columns:
        present = [id(schema) for schema, *_ in having(schemas, column.name)]
        paths = tuple(path for schema in schemas if id(schema) not in present for path in schema.files)
        if paths:
            absent.setdefault(paths, []).append(column.name)
    for paths, names in absent.items():
        yield f"no column {', '.join(map(repr, names))} in {some(list(paths))}; it is null there"


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def leave_out_refused(types: dict[str, str]) -> dict[str, str]:
    """The columns of a query that can be read; says which are left out, and why."""
    for line in filter(None, map(refusal, types.values())):
        _note(f"left out: {line}")
    return {name: sql_type for name, sql_type in types.items() if not refusal(sql_type)}


def count_raw_rows(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> int:
    """Rows of the largest source, as the ends of its files say."""
    counts = [first_row(db, f"select count(*) from {quote(source.name)}") for source in recipe.sources if source.files]
    return max(row[0] for row in counts if row)


@contextmanager
def query_errors(recipe: Recipe, files: dict[str, list[Path]]) -> Iterator[None]:
    """Say what is wrong with the raw files, or with the query on them.

    Raises:
        UserError: the query fails on the data, or a raw file is damaged.
    """
    try:
        yield
    except ENGINE_ERRORS as error:
        if is_interrupted(error) or is_out_of_memory(error) or is_of_the_system(error):
            raise
        raise UserError(diagnose(files, error) or f"{recipe.origin}: sql: {message(error)}") from None


def diagnose(files: dict[str, list[Path]], error: Exception) -> str | None:
    """The damaged file that an error comes from, None if the query is at fault.

    The footers of all files are whole, or there would be no views. Pages are read only after an error that no query
    raises on files that are whole.
    """
    text = str(error)
    is_of_file = "arquet" in text or "Failed to read" in text or "Invalid Input Error" not in text
    if refusal(text) or not is_of_file or any(f"{kind} Error" in text for kind in QUERY_ERRORS):
        return None
    paths = [path for paths in files.values() for path in paths]
    if named := next((path for path in paths if str(path.absolute()) in text), None):
        return unreadable(named, message(error))
    for path in paths:
        try:
            with open_read(path) as opened, pq.ParquetFile(opened) as file:
                for _ in file.iter_batches():
                    pass
        except (OSError, pa.ArrowException) as damage:
            return unreadable(path, damage)
    return None
