"""``recmtl prepare``: raw Parquet logs in, a prepared folder out.

    raw files ──part by part──▶ the recipe's SQL ──▶ examples ──hash of their keys, time or column──▶ splits
        ──counts──▶ vocabularies ──joins──▶ ids ──buckets by hash, sorted one by one──▶ shuffled shards

DuckDB does all of it on columns, within its memory limit. Between the steps rows lie on disk beside the output
(`recmtl.data.prepare.stored`), and a step holds a part or a bucket of them: time is linear in the number of events.
What comes out depends on the recipe and the raw files alone, not on the number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import duckdb
import numpy as np

from recmtl.data.prepare.buckets import BucketWriter, sorted_rows
from recmtl.data.prepare.content import ContentDigests
from recmtl.data.prepare.duck import connect, one_line_errors, parse_size
from recmtl.data.prepare.encode import Shares, encode_into_buckets, fit_features
from recmtl.data.prepare.examples import (
    check_columns,
    check_not_empty,
    create_query,
    create_selected,
    make_encoder,
    other_columns,
    run_query,
    splits_and_hashes,
)
from recmtl.data.prepare.extension import Extend, Extension, last_moment
from recmtl.data.prepare.factorized import FactorizedRows
from recmtl.data.prepare.footers import read_footer
from recmtl.data.prepare.growth import count_pending, grow
from recmtl.data.prepare.label_checks import check_labels
from recmtl.data.prepare.numbering import number_rows
from recmtl.data.prepare.partitions import show_partitions
from recmtl.data.prepare.raw_files import find_files
from recmtl.data.prepare.replaceable import check_replaceable
from recmtl.data.prepare.shards import schema, write_shards
from recmtl.data.prepare.sources import create_views, leave_out_refused, limit_files, query_errors, source_columns
from recmtl.data.prepare.splits import assign_splits, far_from_asked
from recmtl.data.prepare.summary import notes
from recmtl.data.prepare.tasks import describe_tasks
from recmtl.data.prepare.vocabularies import make_lookup
from recmtl.data.prepare.window import Window
from recmtl.data.recipe import Recipe
from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError
from recmtl.runtime.folders import complete_or_absent
from recmtl.runtime.progress import Progress
from recmtl.runtime.storage import make_folder, real_path, write_whole
from recmtl.schema import ENCODER, RECIPE, VOCABULARIES, Dataset, TableGrowth


def prepare(
    recipe: Recipe,
    raw: Path,
    out: Path,
    *,
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
        memory_limit: memory of the process, such as ``4GB``; what does not fit goes to disk beside `out`.
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
    window = extension.window(until, lookahead) if extension else Window(recipe, until=until, lookahead=lookahead)
    files = find_files(recipe, raw)
    cut_short = None if limit is None else limit_files(recipe, files, limit)
    if overwrite and real_path(raw).is_relative_to(real_path(out)):
        raise UserError(f"{out}: holds the raw folder {raw}; name another folder to write")
    with complete_or_absent(out, check_replaceable if overwrite else None) as work:
        db = connect(memory_limit, threads, work / "spill")
        try:
            with Progress() as progress, one_line_errors(recipe.origin, memory_limit):
                create_views(db, recipe, files, raw, cut_short, in_sight=partial(window.in_sight, db))
                columns = source_columns(db, recipe)
                described = replace(
                    _run(db, recipe, files, parse_size(memory_limit), work / "data", progress, window, extension),
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


def _run(
    db: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    files: dict[str, list[Path]],
    memory: int,
    folder: Path,
    progress: Progress,
    window: Window,
    extension: Extension | None,
) -> Dataset:
    types = create_query(db, recipe)
    check_columns(recipe, types)
    types = leave_out_refused(types)
    with query_errors(recipe, files):
        create_selected(db, recipe, types, window.rows(db, types))
        encoder = make_encoder(db, recipe, types)
        if extension:
            extension.check_encoder(encoder)
        rows = FactorizedRows(folder.with_name("stored"), encoder, other_columns(db, recipe))
        with closing(show_partitions(db, recipe, memory, rows.folder / "parts", progress)) as partitions:
            unlabelled = run_query(db, recipe, partitions, rows)
    if extension:
        extension.check_not_empty(rows.rows, unlabelled, window.described)
    check_not_empty(recipe, rows, unlabelled, window.described)

    with progress.stage("splitting", 1):
        number_rows(db, recipe, rows.stored(), rows.rows, memory)
        asked = assign_splits(db, recipe, rows.rows)
        oracles = check_labels(db, recipe, rows.rows)
        splits, hashes = splits_and_hashes(db, rows.folder, rows.rows)
        counts, tasks = describe_tasks(recipe, rows, splits, hashes, oracles, all_labelled=extension is None)
        until = last_moment(db, recipe)
    if note := far_from_asked(asked, counts):
        progress.note(f"{recipe.origin}: {note}")

    growth: dict[str, TableGrowth] = {}
    with progress.stage("numbering values", len(recipe.tables)) as advance:
        if extension is None:
            encoder = _new_encoder(db, recipe, rows, splits, folder, advance)
        else:
            tasks = extension.tasks(tasks)
            encoder, growth = _grown_encoder(db, recipe, rows, splits, folder, extension, advance)

    dataset = Dataset(
        recipe.name,
        counts,
        encoder.tables,
        encoder.features,
        tasks,
        group=recipe.group is not None,
        row_weight=recipe.weight is not None or recipe.sampling.keep_negatives < 1,
        unlabelled=unlabelled,
        keep_negatives=recipe.sampling.keep_negatives,
        lineage=extension.lineage if extension else (),
        until=until,
        growth=growth,
        segments=recipe.segments,
    )
    shares = Shares(encoder.features)
    ranges, encoded = rows.ranges(memory), rows.folder / "encoded"
    with (
        progress.stage("encoding rows", rows.rows) as advance,
        BucketWriter(encoded, schema(dataset), ranges) as buckets,
    ):
        for done in encode_into_buckets(rows, encoder, recipe, dataset, shares, splits, hashes, buckets):
            advance(done)
    rows.remove()
    content = ContentDigests()
    with progress.stage("writing shuffled rows", rows.rows) as advance:
        for written in write_shards(sorted_rows(encoded, ranges), dataset, folder, content):
            advance(written)
    encoder.save(folder / ENCODER)
    write_whole(folder / RECIPE, recipe.toml)
    dataset = replace(dataset, features=tuple(map(shares.describe, dataset.features)), content=content.hexdigests())
    for note in notes(dataset):
        progress.note(f"{recipe.origin}: {note}")
    return dataset


def _new_encoder(
    db: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    rows: FactorizedRows,
    splits: np.ndarray,
    folder: Path,
    advance: Callable[[int], None],
) -> Encoder:
    """The encoder whose statistics and vocabularies are those of the training rows."""
    make_folder(folder / VOCABULARIES)
    vocab_from, found = recipe.split.vocab_from, []
    for done, spec in enumerate(recipe.tables, 1):
        found.append(make_lookup(db, rows, splits, spec, vocab_from, folder / VOCABULARIES))
        if recipe.split.by == "time" and (spec.min_count > 1 or spec.max_rows is not None):
            count_pending(db, rows, splits, spec, vocab_from, folder)
        advance(done)
    lookups = {table.name: lookup for table, lookup in found}
    return Encoder(fit_features(rows, splits), tuple(table for table, _ in found), lookups, rows.encoder.schema)


def _grown_encoder(
    db: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    rows: FactorizedRows,
    splits: np.ndarray,
    folder: Path,
    extension: Extension,
    advance: Callable[[int], None],
) -> tuple[Encoder, dict[str, TableGrowth]]:
    """The encoder of the data that is extended, with the values of the new training rows, and how its tables grew."""
    make_folder(folder / VOCABULARIES)
    make_folder(folder / ENCODER)
    found = []
    for done, spec in enumerate(recipe.tables, 1):
        grown = grow(db, rows, splits, spec, (extension.folder, extension.dataset), folder, recipe.split.vocab_from)
        if grown.generations is not None:
            grown.generations.save(folder / ENCODER, spec.name)
        found.append(grown)
        advance(done)
    growth = {grown.table.name: grown.counts for grown in found if grown.counts is not None}
    lookups = {grown.table.name: grown.lookup for grown in found}
    tables = tuple(grown.table for grown in found)
    return Encoder(extension.dataset.features, tables, lookups, rows.encoder.schema), growth


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
