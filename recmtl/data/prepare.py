"""``recmtl prepare``: raw Parquet logs in, a prepared folder out.

    raw files ──the recipe's SQL──▶ examples ──hash, time or column──▶ splits ──counts──▶ vocabularies
        ──joins──▶ ids ──one sort by hash──▶ shuffled shards

DuckDB does all of it on columns, within its memory limit, and spills to disk beside the output. What comes out
depends on the recipe and the raw files alone, not on the number of threads.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import duckdb

from recmtl.data.dataset import Dataset, Feature, Table, Task
from recmtl.data.duck import arrow_batches, connect, one_line_errors, query_progress
from recmtl.data.encode import create_vocabulary, describe_feature, encoding_query, table_type
from recmtl.data.examples import check_columns, create_query, deal, materialize
from recmtl.data.labels import describe_tasks
from recmtl.data.recipe import Recipe
from recmtl.data.shards import CHUNK_ROWS, write_shards
from recmtl.data.sources import create_views, find_files
from recmtl.data.stages import Stages, polled
from recmtl.files import complete_or_absent

VOCABULARIES = "vocab"


def prepare(recipe: Recipe, raw: Path, out: Path, *, memory_limit: str = "4GB", threads: int | None = None) -> Dataset:
    """Turn the raw files of a folder into training data.

    Args:
        recipe: says what the examples, features and tasks are.
        raw: folder with the raw Parquet files.
        out: folder to write; absent or empty. It is complete or absent afterwards.
        memory_limit: memory of the process, such as ``4GB``; what does not fit goes to disk beside `out`.
        threads: number of threads; all cores when None.

    Returns:
        What was written, as in ``dataset.json``.

    Raises:
        UserError: the recipe, a raw file or `out` has a mistake; nothing is written.
    """
    files = find_files(recipe, raw)
    with complete_or_absent(out) as work:
        db = connect(memory_limit, threads, work / "spill")
        try:
            with Stages() as stages, one_line_errors(recipe.origin, memory_limit):
                create_views(db, recipe, files, raw)
                return _run(db, recipe, files, work / "data", stages)
        finally:
            db.close()


def _run(
    db: duckdb.DuckDBPyConnection, recipe: Recipe, files: dict[str, list[Path]], folder: Path, stages: Stages
) -> Dataset:
    types = create_query(db, recipe)
    check_columns(recipe, types)
    kinds = {table.name: table_type(recipe, table, types) for table in recipe.tables}

    with stages.stage("reading raw files", 100) as advance, polled(query_progress(db), advance):
        total = materialize(db, recipe, types, files)

    with stages.stage("splitting", 1):
        deal(db, recipe, total)
        rows, tasks = describe_tasks(db, recipe)

    tables, digests = [], []
    (folder / VOCABULARIES).mkdir()
    with stages.stage("numbering values", len(recipe.tables)) as advance:
        for done, spec in enumerate(recipe.tables, 1):
            table, digest = create_vocabulary(db, recipe, spec, kinds[spec.name], folder / VOCABULARIES)
            tables.append(table)
            digests.append(digest)
            advance(done)
        features = tuple(describe_feature(db, spec) for spec in recipe.features)

    fingerprint = _fingerprint(tables, features, tasks, digests)
    dataset = Dataset(recipe.name, fingerprint, rows, tuple(tables), features, tasks, recipe.group is not None)
    with stages.stage("encoding and shuffling rows", total) as advance:
        for written in write_shards(
            arrow_batches(db, encoding_query(recipe, dataset, kinds), CHUNK_ROWS), dataset, folder
        ):
            advance(written)
    dataset.save(folder)
    return dataset


def _fingerprint(
    tables: list[Table], features: tuple[Feature, ...], tasks: tuple[Task, ...], digests: list[str]
) -> str:
    """Hash of all that a model trained on these files relies on."""
    described = [{key: value for key, value in asdict(f).items() if key != "mean_length"} for f in features]
    parts = [*map(asdict, tables), *described, [task.name for task in tasks], digests]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
