"""The raw folder as SQL views."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.duck import literal, message, quote
from recmtl.data.recipe import Recipe, Source
from recmtl.errors import UserError


def find_files(recipe: Recipe, raw: Path) -> dict[str, list[Path]]:
    """The files of every source, in order of their names.

    Raises:
        UserError: there is no raw folder, or a source that is not optional has no files.
    """
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; give the folder with the raw Parquet files")
    return {source.name: _glob(source, raw) for source in recipe.sources}


def _glob(source: Source, raw: Path) -> list[Path]:
    found = {path for pattern in source.files for path in raw.glob(pattern) if path.is_file()}
    files = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(raw).parts))
    if not files and not source.optional:
        raise UserError(f"{raw}: no file matches {' or '.join(source.files)}, which source {source.name!r} reads")
    return files


def create_views(db: duckdb.DuckDBPyConnection, recipe: Recipe, files: dict[str, list[Path]], raw: Path) -> None:
    """Create a view a source, with two more columns: filename (relative to `raw`) and file_row_number.

    Raises:
        UserError: a file cannot be read.
    """
    for source in recipe.sources:
        try:
            db.execute(f"create view {quote(source.name)} as {_select(source, files[source.name], raw)}")
        except duckdb.Error as problem:
            raise UserError(diagnose(files, f"source {source.name!r}: {message(problem)}")) from None


def _select(source: Source, files: list[Path], raw: Path) -> str:
    if not files:
        columns = {**source.columns, "filename": "VARCHAR", "file_row_number": "BIGINT"}
        nulls = ", ".join(f"cast(null as {kind}) as {quote(name)}" for name, kind in columns.items())
        return f"select {nulls} where false"
    paths = ", ".join(literal(str(path)) for path in files)
    # Relative, so that the examples do not depend on where the folder lies.
    relative = f"substr(filename, {len(str(raw / 'x'))}) as filename"
    return f"select * replace ({relative}) from read_parquet([{paths}], filename = true, file_row_number = true)"


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
