"""The query of a recipe run by DuckDB alone, Parquet to Parquet: what preparing the same events is measured against.

    python benchmarks/bare_query.py RECIPE.toml RAW OUT.parquet --threads 2 --memory-limit 4GB

Imports nothing of recmtl. What is written is not compressed, as prepared data is not.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import duckdb

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11
    import tomli as tomllib


def run(recipe: dict[str, Any], raw: Path, out: Path, threads: int, memory_limit: str) -> None:
    """Create the recipe's views and write what its query yields. Views of files name them relative to `raw`."""
    settings = {
        "threads": str(threads),
        "memory_limit": memory_limit,
        "temp_directory": f"{out.resolve()}.spill",
        "preserve_insertion_order": "false",
    }
    target = out.resolve()
    os.chdir(raw)
    with duckdb.connect(config=settings) as db:  # type: ignore[arg-type]
        for name, source in recipe["sources"].items():
            db.execute(f"create view {name} as {_select(source)}")
        db.execute(f"copy ({recipe['sql']}) to '{target}' (format parquet, compression uncompressed)")


def _select(source: Any) -> str:
    """The query behind a source: its own, or one that reads its files."""
    if isinstance(source, dict) and "sql" in source:
        return str(source["sql"])
    globs = source["files"] if isinstance(source, dict) else source
    files = sorted({str(path) for glob in ([globs] if isinstance(globs, str) else globs) for path in Path().glob(glob)})
    listed = ", ".join(f"'{file}'" for file in files)
    return f"select * from read_parquet([{listed}], filename = true, file_row_number = true, hive_partitioning = false)"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("recipe", "raw", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--memory-limit", required=True)
    given = parser.parse_args()
    run(tomllib.loads(given.recipe.read_text()), given.raw, given.out, given.threads, given.memory_limit)
