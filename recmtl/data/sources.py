"""The raw folder as SQL views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.duck import (
    ENGINE_ERRORS,
    column_types,
    first_row,
    is_interrupted,
    is_of_the_system,
    is_out_of_memory,
    literal,
    message,
    quote,
)
from recmtl.data.recipe import Recipe, Source
from recmtl.errors import UserError

FILENAME, FILE_ROW_NUMBER = "filename", "file_row_number"
"""Columns that a view of files has beside those of the files."""


def find_files(recipe: Recipe, raw: Path) -> dict[str, list[Path]]:
    """The files of every source, in order of their names.

    Raises:
        UserError: there is no raw folder, or a source that is not optional has no files.
    """
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; give the folder with the raw Parquet files")
    return {source.name: _glob(source, raw) for source in recipe.sources if source.files}


def _glob(source: Source, raw: Path) -> list[Path]:
    found = {path for pattern in source.files for path in raw.glob(pattern) if path.is_file()}
    files = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(raw).parts))
    if not files and not source.optional:
        raise UserError(f"{raw}: no file matches {' or '.join(source.files)}, which source {source.name!r} reads")
    return files


def create_views(db: duckdb.DuckDBPyConnection, recipe: Recipe, files: dict[str, list[Path]], raw: Path) -> None:
    """Create a view a source; of files it has two more columns: filename (relative to `raw`) and file_row_number.

    Raises:
        UserError: a file cannot be read, or a source's query is not valid.
    """
    for source in recipe.sources:
        query = source.sql.rstrip().rstrip(";") if source.sql else _select(source, files[source.name], raw)
        try:
            db.execute(f"create view {quote(source.name)} as\n{query}\n")
        except duckdb.Error as problem:
            where = f"{recipe.origin}: [sources] {source.name!r}"
            raise UserError(diagnose(files, f"{where}: {message(problem)}")) from None
        _check_cut(db, source, recipe.origin)


def _check_cut(db: duckdb.DuckDBPyConnection, source: Source, origin: str) -> None:
    names = column_types(db, quote(source.name))
    if source.parts_by is not None and source.parts_by not in names:
        where = f"{origin}: [sources] {source.name!r}: parts_by"
        raise UserError(f"{where}: no column {source.parts_by!r}; {columns_hint(source.parts_by, names)}")


def columns_hint(column: str, names: Iterable[str]) -> str:
    """What to say to a user who named a column that is not there: the nearest one, and those that are their own."""
    near = get_close_matches(column, names, n=1)
    hint = f"did you mean {near[0]!r}? Its" if near else "its"
    return f"{hint} columns are {', '.join(name for name in names if name not in (FILENAME, FILE_ROW_NUMBER))}"


def _select(source: Source, files: list[Path], raw: Path) -> str:
    if not files:
        columns = {**source.columns, FILENAME: "VARCHAR", FILE_ROW_NUMBER: "BIGINT"}
        nulls = ", ".join(f"cast(null as {kind}) as {quote(name)}" for name, kind in columns.items())
        return f"select {nulls} where false"
    paths = ", ".join(literal(str(path)) for path in files)
    # Relative, so that the examples do not depend on where the folder lies.
    relative = f"substr(filename, {len(str(raw / 'x'))}) as filename"
    return f"select * replace ({relative}) from read_parquet([{paths}], filename = true, file_row_number = true)"


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
    except ENGINE_ERRORS as problem:
        if is_interrupted(problem) or is_out_of_memory(problem) or is_of_the_system(problem):
            raise
        raise UserError(diagnose(files, f"{recipe.origin}: sql: {message(problem)}")) from None


def diagnose(files: dict[str, list[Path]], otherwise: str) -> str:
    """Why reading failed: the first damaged file, else `otherwise`."""
    for path in (path for paths in files.values() for path in paths):
        try:
            with pq.ParquetFile(path) as file:
                for _ in file.iter_batches():
                    pass
        except (OSError, pa.ArrowException) as problem:
            reason = " ".join(str(problem).split())
            return f"{path}: not readable as Parquet ({reason}); it may be cut short, fetch or write it again"
    return otherwise
