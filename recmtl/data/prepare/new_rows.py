"""New raw files as rows of the recipe's query, for a model that was trained on others."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from recmtl.data.prepare.duck import (
    column_types,
    connect,
    moment,
    one_line_errors,
    parse_size,
    plain_arrow,
    quote,
)
from recmtl.data.prepare.examples import (
    ROWS,
    SELECTED,
    check_feature,
    create_query,
    for_arrow,
    query_batches,
    selected_schema,
)
from recmtl.data.prepare.lineage import columns_behind
from recmtl.data.prepare.misaligned import misaligned
from recmtl.data.prepare.order import has_order, order_of
from recmtl.data.prepare.partitions import show_partitions
from recmtl.data.prepare.raw_files import find_files
from recmtl.data.prepare.sources import columns_hint, create_views, leave_out_refused, query_errors
from recmtl.data.recipe import Recipe
from recmtl.encoding.encoder import Encoder
from recmtl.encoding.histories import Misaligned
from recmtl.errors import UserError
from recmtl.features.categorical import is_simple
from recmtl.runtime.progress import Progress
from recmtl.schema import SourceColumns


@dataclass(frozen=True)
class NewRows:
    """Rows of a recipe's query."""

    schema: pa.Schema
    """Names and types of the columns of `batches`."""
    kept: tuple[str, ...]
    """Those to be written beside the predictions."""
    batches: Iterator[pa.RecordBatch]
    """In the query's order, or that of `order_of`: where it runs on partitions of the events, in each of them.
    Histories are aligned."""


@contextmanager
def open_new_rows(
    recipe: Recipe,
    raw: Path,
    encoder: Encoder,
    known: SourceColumns,
    *,
    keep: tuple[str, ...] | None,
    since: str | None,
    memory_limit: str,
    threads: int | None,
    spill: Path,
    progress: Progress,
) -> Iterator[NewRows]:
    """Run a recipe's query on a raw folder, for the columns that a model reads and those to keep.

    Args:
        recipe: of the data that the model was trained on.
        raw: folder with the raw files. Columns that they had then and lack now are null, and no feature may need them.
        encoder: of the model.
        known: names and types of the columns that the raw files had then.
        keep: columns of the query; None: all that are single values and can be told.
        since: only rows whose split column is that moment or later; the query sees all rows.
        memory_limit: memory of the process, such as ``4GB``, the model left out.
        threads: number of threads of the query; all cores when None.
        spill: folder for what does not fit.
        progress: where to show it.

    Raises:
        UserError: a raw file, a column or an argument has a mistake.
    """
    files = find_files(recipe, raw)
    db = connect(memory_limit, threads, spill, ordered=True)

    @contextmanager
    def in_one_line() -> Iterator[None]:
        with one_line_errors(recipe.origin, memory_limit), query_errors(recipe, files):
            yield

    def batches() -> Generator[pa.RecordBatch, None, None]:
        path = spill.with_name("partitions")
        # What is done with a batch is outside: an error there is none of the query's.
        with (
            plain_arrow(db),
            in_one_line(),
            closing(show_partitions(db, recipe, parse_size(memory_limit), path, progress)) as partitions,
        ):
            for batch in query_batches(db, partitions):
                try:
                    encoder.check_aligned({name: batch.column(name) for name in encoder.schema.names})
                except Misaligned as error:
                    raise misaligned(recipe, batch, error, db) from None
                yield batch

    try:
        with in_one_line():
            lacking = create_views(db, recipe, files, raw, known=known).lacking
            types = create_query(db, recipe)
            for feature in recipe.features:
                check_feature(feature, types, f"{recipe.origin}: [[feature]] {feature.name!r}")
            types = leave_out_refused(types)
            untold = _untold(db, recipe, lacking, types, raw)
            condition = "" if since is None else _since(db, recipe, types, since)
            kept = _kept(recipe, types, keep, untold)
            columns = dict.fromkeys([*encoder.schema.names, *kept])
            selected = ", ".join(f"{for_arrow(name, types[name])} as {quote(name)}" for name in columns)
            query = f"select {selected} from {ROWS}{condition}"
            db.execute(f"create view {SELECTED} as {query}")
            if not has_order(db, SELECTED):
                order = order_of(recipe, types, encoder.schema.names, kept)
                db.execute(f"create or replace view {SELECTED} as {query} order by {order}")
            schema = selected_schema(db)
        encoder.check(schema)
        with closing(batches()) as running:
            yield NewRows(schema, kept, running)
    finally:
        db.close()


def _untold(
    db: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    lacking: SourceColumns,
    types: dict[str, str],
    raw: Path,
) -> dict[str, str]:
    """The query's columns that depend on one that the raw files lack, and on which.

    Raises:
        UserError: a feature is among them, or which rows there are depends on it.
    """
    absent = {(source, column) for source, columns in lacking.items() for column in columns}
    if not absent:
        return {}
    columns = {source.name: column_types(db, quote(source.name)) for source in recipe.sources if not source.sql}
    behind = columns_behind(recipe, columns, types)
    untold = {column: sorted(sources & absent) for column, sources in behind.items() if sources & absent}
    for feature in recipe.features:
        for source, column in untold.get(feature.column, []):
            everywhere = all((source, column) in sources for sources in behind.values())
            need = "sql needs it to tell which rows there are" if everywhere else f"feature {feature.name!r} needs it"
            raise UserError(f"{raw}: the files of source {source!r} lack the column {column!r}, and {need}; add it")
    return {column: sources[0][1] for column, sources in untold.items()}


def _kept(
    recipe: Recipe, types: dict[str, str], keep: tuple[str, ...] | None, untold: dict[str, str]
) -> tuple[str, ...]:
    """The columns to write beside the predictions."""
    if keep is None:
        left_out = [column for column in untold if is_simple(types[column])]
        if left_out:
            lacks = ", ".join(sorted({repr(untold[column]) for column in left_out}))
            print(f"not kept: {', '.join(left_out)}; the raw files lack {lacks}", file=sys.stderr)
        return tuple(name for name, sql_type in types.items() if is_simple(sql_type) and name not in untold)
    for column in keep:
        if column not in types:
            raise UserError(f"--keep: {recipe.origin}: sql yields no column {column!r}; {columns_hint(column, types)}")
        if column in untold:
            raise UserError(f"--keep: column {column!r} is made of {untold[column]!r}, which the raw files lack")
    return tuple(dict.fromkeys(keep))


def _since(db: duckdb.DuckDBPyConnection, recipe: Recipe, types: dict[str, str], since: str) -> str:
    """The condition that a row is of that moment or later."""
    # A column that names each row's split tells no times.
    column = recipe.split.column if recipe.split.by == "time" else None
    if column is None:
        raise UserError(f"--since: {recipe.origin} names no [split] column to tell times by; add one")
    if column not in types:
        raise UserError(f"--since: {recipe.origin}: sql yields no column {column!r}; {columns_hint(column, types)}")
    return f" where {quote(column)} >= {moment(db, since, column, types[column])}"
