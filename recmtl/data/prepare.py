"""``recmtl prepare``: raw Parquet logs in, a prepared folder out.

    raw files ──the recipe's SQL──▶ examples ──hash, time or column──▶ splits ──counts──▶ vocabularies
        ──joins──▶ ids ──one sort by hash──▶ shuffled shards

DuckDB does all of it on columns, within its memory limit, and spills to disk beside the output. What comes out
depends on the recipe and the raw files alone, not on the number of threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import duckdb
import pyarrow as pa

from recmtl.data.dataset import Dataset
from recmtl.data.duck import connect, stage
from recmtl.data.encode import Query, create_vocabulary, describe_feature, table_type
from recmtl.data.examples import check_columns, create_query, deal, materialize
from recmtl.data.labels import describe_tasks
from recmtl.data.recipe import Recipe
from recmtl.data.shards import CHUNK_ROWS, write_shards
from recmtl.data.sources import create_views, find_files
from recmtl.data.stages import Stages, polled
from recmtl.errors import UserError


def prepare(
    recipe: Recipe, raw: Path, out: Path, *, memory_limit: str = "4GB", threads: int | None = None
) -> Dataset:
    """Turn the raw files of a folder into training data.

    Args:
        recipe: says what the examples, features and tasks are.
        raw: folder with the raw Parquet files.
        out: folder to write; absent or empty. It is complete or absent afterwards.
        memory_limit: memory of the SQL engine, such as ``4GB``; what does not fit goes to disk beside `out`.
        threads: number of threads; all cores when None.

    Returns:
        What was written, as in ``dataset.json``.

    Raises:
        UserError: the recipe, a raw file or `out` has a mistake; nothing is written.
    """
    files = find_files(recipe, raw)
    with _complete_or_absent(out) as work:
        spill, folder = work / "spill", work / "data"
        db = connect(memory_limit, threads, spill)
        try:
            folder.mkdir()
            with Stages() as stages:
                return _Preparation(recipe, raw, files, folder, db, memory_limit, stages).run()
        finally:
            db.close()


@contextmanager
def _complete_or_absent(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`; its ``data`` becomes `out` if nothing goes wrong, and the rest is removed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; remove it or name another folder")
    out = out.absolute()
    work = out.parent / f".{out.name}.tmp-{os.getpid()}"
    try:
        work.mkdir(parents=True)
        yield work
        (work / "data").replace(out)
    except OSError as problem:
        raise UserError(f"{out}: cannot be written ({problem.strerror or problem})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Preparation:
    """One run of `prepare`."""

    def __init__(
        self,
        recipe: Recipe,
        raw: Path,
        files: dict[str, list[Path]],
        folder: Path,
        db: duckdb.DuckDBPyConnection,
        memory_limit: str,
        stages: Stages,
    ) -> None:
        self.recipe, self.raw, self.files, self.folder = recipe, raw, files, folder
        self.db, self.memory_limit, self.stages = db, memory_limit, stages

    def run(self) -> Dataset:
        total = self._read()
        with self.stages.stage("splitting and checking labels", 1), self._guard("split"):
            deal(self.db, self.recipe, total)
            rows, tasks = describe_tasks(self.db, self.recipe)
        tables, kinds, digests = self._vocabularies()
        with self._guard("numeric features"):
            features = tuple(describe_feature(self.db, feature) for feature in self.recipe.features)
        encoding = [*map(asdict, tables), *map(asdict, features), [task.name for task in tasks], digests]
        fingerprint = hashlib.sha256(json.dumps(encoding, sort_keys=True).encode()).hexdigest()[:32]
        group = self.recipe.group is not None
        dataset = Dataset(self.recipe.name, fingerprint, rows, tables, features, tasks, group)
        self._write(dataset, kinds)
        return dataset

    def _guard(self, what: str):  # type: ignore[no-untyped-def]
        return stage(f"{self.recipe.origin}: {what}", self.memory_limit)

    def _read(self) -> int:
        """Run the query; returns the number of examples."""
        with self.stages.stage("reading and running the query", 100) as advance:
            create_views(self.db, self.recipe, self.files, self.raw)
            self.types = create_query(self.db, self.recipe)
            check_columns(self.recipe, self.types)
            progress = getattr(self.db, "query_progress", lambda: 0.0)
            with polled(progress, advance):
                return materialize(self.db, self.recipe, self.types, self.files, self.memory_limit)
