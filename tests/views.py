"""A raw folder as the views of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.prepare.duck import arrow_batches, connect
from recmtl.data.prepare.raw_files import find_files
from recmtl.data.prepare.sources import create_views
from recmtl.data.recipe import Recipe, Source

RAW = Source("raw", ("**/*.parquet",))


def write(path: Path, table: pa.Table | dict[str, Any]) -> Path:
    """Write a Parquet file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # a path with a colon would be taken for a URI
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), file)
    return path


def view(raw: Path, *sources: Source, db: duckdb.DuckDBPyConnection | None = None) -> duckdb.DuckDBPyConnection:
    """A database with the views of a raw folder; without `sources` the view raw of all Parquet files."""
    recipe = Recipe("d", "select * from raw", sources=sources or (RAW,), origin="r.toml")
    db = db or connect("1GB", 1, raw / "spill")
    create_views(db, recipe, find_files(recipe, raw), raw)
    return db


def rows(
    db: duckdb.DuckDBPyConnection, query: str = "select * from raw order by filename, file_row_number"
) -> pa.Table:
    """What a query on the views yields."""
    return arrow_batches(db, query, 1000).read_all()
