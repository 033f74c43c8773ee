"""``recmtl prepare``: raw Parquet logs in, a prepared folder out.

    raw files ──part by part──▶ the recipe's SQL ──▶ examples ──hash of their keys, time or column──▶ splits
        ──counts──▶ vocabularies ──joins──▶ ids ──buckets by hash, sorted one by one──▶ shuffled shards

DuckDB does all of it on columns, within its memory limit. Between the steps rows lie on disk beside the output
(`recmtl.data.prepare.stored`), and a step holds a part or a bucket of them: time is linear in the number of events.
What comes out depends on the recipe and the raw files alone, not on the number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from recmtl.data.prepare.duck import connect, one_line_errors, parse_size
from recmtl.data.prepare.engine import Engine, Query
from recmtl.data.prepare.examples import (
    check_columns,
    check_not_empty,
    create_query,
    create_selected,
    make_encoder,
    other_columns,
)
from recmtl.data.prepare.extension import Extend, Extension
from recmtl.data.prepare.footers import read_footer
from recmtl.data.prepare.growth import count_pending, grow
from recmtl.data.prepare.label_checks import check_labels
from recmtl.data.prepare.local import LocalEngine
from recmtl.data.prepare.raw_files import find_files
from recmtl.data.prepare.replaceable import check_replaceable
from recmtl.data.prepare.sources import (
    FileView,
    create_views,
    leave_out_refused,
    limit_files,
    query_errors,
    source_columns,
)
from recmtl.data.prepare.splits import far_from_asked, split_rule
from recmtl.data.prepare.summary import notes
from recmtl.data.prepare.vocabularies import make_lookup
from recmtl.data.prepare.window import Window
from recmtl.data.recipe import Recipe, TableSpec
from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError
from recmtl.runtime.folders import complete_or_absent
from recmtl.runtime.progress import Progress
from recmtl.runtime.storage import make_folder, real_path, write_whole
from recmtl.schema import ENCODER, FILE_NAME, RECIPE, VOCABULARIES, Dataset, Feature, TableGrowth


def prepare(
    recipe: Recipe,
    raw: Path,
    out: Path,
    *,
    engine: str = "duckdb",
    master: str | None = None,
    memory_limit: str = "4GB",
    threads: int | None = None,
    overwrite: bool = False,
    limit: int | None = None,
    extend: Extend | None = None,
    until: str | None = None,
    lookahead: str | None = None,
) -> Dataset:
    """Turn the raw files of a folder into training data.

    Args:
        recipe: says what the examples, features and tasks are.
        raw: folder with the raw Parquet files.
        out: folder to write; absent or empty. It is complete or absent afterwards.
        engine: ``duckdb``, this machine, or ``spark``, a cluster that shares the disks of `raw` and `out`.
        master: of the cluster, such as ``spark://HOST:7077``; None: as Spark's own settings say.
        memory_limit: memory of the process, such as ``4GB``; what does not fit goes to disk beside `out`. On a cluster
            also that of every task, whose disk is Spark's.
        threads: number of threads; all cores when None.
        overwrite: `out` may hold prepared data, which stays until it is replaced.
        limit: read only the first so many raw rows of the recipe's first source of files; all when None.
        extend: the folder whose encoding is to grow, and the rows after it, which alone are written; None: begin anew.
        until: write only rows before this moment, by the column of the recipe's split by time; None: all.
        lookahead: how far the query sees from `until` on; None: all that there is.

    Returns:
        What was written, as in ``dataset.json``.

    Raises:
        UserError: the recipe, a raw file or `out` has a mistake; nothing is written.
    """
    extension = None if extend is None else Extension(recipe, extend)
    if extension:
        recipe = extension.recipe
    if engine == "spark":
        if threads is not None:
            raise UserError("--threads: every task of Spark has one; more cores of executors run more tasks at a time")
        raw = raw.absolute()  # tasks run in folders of their own
    window = extension.window(until, lookahead) if extension else Window(recipe, until=until, lookahead=lookahead)
    files = find_files(recipe, raw)
    cut_short = None if limit is None else limit_files(recipe, files, limit)
    if overwrite and real_path(raw).is_relative_to(real_path(out)):
        raise UserError(f"{out}: holds the raw folder {raw}; name another folder to write")
    with complete_or_absent(out, check_replaceable if overwrite else None, marker=FILE_NAME) as work:
        db = connect(memory_limit, threads, work / "spill")
        try:
            with (
                Progress() as progress,
                one_line_errors(recipe.origin, memory_limit),
                _open_engine(engine, master, recipe, work, memory_limit, progress) as running,
            ):
                views = create_views(db, recipe, files, raw, cut_short, in_sight=partial(window.in_sight, db)).files
                columns = source_columns(db, recipe)
                described = replace(
                    _run(db, recipe, files, views, running, work / "data", progress, window, extension),
                    limit=None if cut_short is None else limit,
                    split=recipe.split.rule,
                    sql=_sql_digest(recipe),
                    sources=_raw_rows(files, raw),
                    source_columns=columns,
                )
                described.save(work / "data")
                return described
        finally:
            db.close()


def _open_engine(
    name: str, master: str | None, recipe: Recipe, work: Path, memory_limit: str, progress: Progress
) -> AbstractContextManager[Engine]:
    """Start what runs the query, to be used as a context."""
    memory = parse_size(memory_limit)
    if name == "duckdb":
        return nullcontext(LocalEngine(work / "stored", memory))
    from recmtl.data.prepare.spark.engine import open_engine  # imports PySpark

    return open_engine(recipe.name, master, work, memory_limit, memory, progress)


def _run(
    db: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    files: dict[str, list[Path]],
    views: dict[str, FileView],
    engine: Engine,
    folder: Path,
    progress: Progress,
    window: Window,
    extension: Extension | None,
) -> Dataset:
    types = create_query(db, recipe)
    check_columns(recipe, types)
    types = leave_out_refused(types)
    with query_errors(recipe, files):
        condition = window.rows(db, types)
        create_selected(db, recipe, types, condition)
        encoder = make_encoder(db, recipe, types)
        if extension:
            extension.check_encoder(encoder)
        query = Query(db, recipe, files, views, types, condition, encoder, other_columns(db, recipe))
        rows = engine.run(query, progress)
    if extension:
        extension.check_not_empty(rows.rows, rows.unlabelled, window.described)
    check_not_empty(recipe, rows.rows, rows.unlabelled, window.described)

    with progress.stage("splitting", 1):
        facts = rows.facts()
        rule, asked = split_rule(recipe, rows.rows, facts, rows.ranked)
        oracles = check_labels(db, recipe, rows.rows, facts)
        of_tasks, of_features = rows.assign_splits(rule)
        counts, tasks = of_tasks.describe(oracles, all_labelled=extension is None)
        until = rows.last_moment()
    if note := far_from_asked(asked, counts):
        progress.note(f"{recipe.origin}: {note}")

    growth: dict[str, TableGrowth] = {}
    with progress.stage("numbering values", len(recipe.tables)) as advance:
        if extension is None:
            encoder = _new_encoder(db, recipe, encoder, rows.counts, of_features.features(), folder, advance)
        else:
            tasks = extension.tasks(tasks)
            encoder, growth = _grown_encoder(db, recipe, encoder, rows.counts, folder, extension, advance)
    encoder.save(folder / ENCODER)

    dataset = Dataset(
        recipe.name,
        counts,
        encoder.tables,
        encoder.features,
        tasks,
        group=recipe.group is not None,
        row_weight=recipe.weight is not None or recipe.sampling.keep_negatives < 1,
        unlabelled=rows.unlabelled,
        keep_negatives=recipe.sampling.keep_negatives,
        lineage=extension.lineage if extension else (),
        until=until,
        growth=growth,
        segments=recipe.segments,
    )
    shares, content = rows.write(encoder, dataset, folder)
    write_whole(folder / RECIPE, recipe.toml)
    dataset = replace(dataset, features=tuple(map(shares.describe, dataset.features)), content=content)
    for note in notes(dataset):
        progress.note(f"{recipe.origin}: {note}")
    return dataset


Counts = Callable[[TableSpec], Iterable[pa.RecordBatch]]
"""How often values of a table occur in the rows that count."""


def _new_encoder(
    db: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    bare: Encoder,
    counts: Counts,
    features: tuple[Feature, ...],
    folder: Path,
    advance: Callable[[int], None],
) -> Encoder:
    """The encoder whose statistics and vocabularies are those of the training rows."""
    make_folder(folder / VOCABULARIES)
    tables, lookups = [], {}
    for done, (spec, table) in enumerate(zip(recipe.tables, bare.tables, strict=True), 1):
        found, lookups[table.name] = make_lookup(db, table, counts, spec, folder / VOCABULARIES)
        if recipe.split.by == "time" and (spec.min_count > 1 or spec.max_rows is not None):
            count_pending(db, table, counts(spec), folder)
        tables.append(found)
        advance(done)
    return Encoder(features, tuple(tables), lookups, bare.schema)


def _grown_encoder(
    db: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    bare: Encoder,
    counts: Counts,
    folder: Path,
    extension: Extension,
    advance: Callable[[int], None],
) -> tuple[Encoder, dict[str, TableGrowth]]:
    """The encoder of the data that is extended, with the values of the new training rows, and how its tables grew."""
    make_folder(folder / VOCABULARIES)
    make_folder(folder / ENCODER)
    found = []
    for done, spec in enumerate(recipe.tables, 1):
        grown = grow(db, counts, spec, (extension.folder, extension.dataset), folder)
        if grown.generations is not None:
            grown.generations.save(folder / ENCODER, spec.name)
        found.append(grown)
        advance(done)
    growth = {grown.table.name: grown.counts for grown in found if grown.counts is not None}
    lookups = {grown.table.name: grown.lookup for grown in found}
    tables = tuple(grown.table for grown in found)
    return Encoder(extension.dataset.features, tables, lookups, bare.schema), growth


def _sql_digest(recipe: Recipe) -> str:
    """SHA-256 of the recipe's queries, the first 32 hexadecimal digits."""
    queries = "\n".join([recipe.sql, *(source.sql for source in recipe.sources)])
    return hashlib.sha256(queries.encode()).hexdigest()[:32]


def _raw_rows(files: dict[str, list[Path]], raw: Path) -> dict[str, dict[str, int]]:
    """Rows of every raw file, by source and by its name in the raw folder."""
    return {
        source: {str(path.relative_to(raw)): read_footer(path).num_rows for path in paths}
        for source, paths in files.items()
    }
