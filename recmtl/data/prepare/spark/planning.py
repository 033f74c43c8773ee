"""Decides how a query runs in tasks."""

from __future__ import annotations

from recmtl.data.prepare.duck import arrow_batches, column_types, quote, refusal
from recmtl.data.prepare.engine import Query
from recmtl.data.prepare.examples import SELECTED, key_columns
from recmtl.data.prepare.lineage import columns_behind
from recmtl.data.prepare.partitions import partition_type, rows_at_once
from recmtl.data.prepare.sources import count_raw_rows
from recmtl.data.prepare.spark.pieces import Piece, cut, partitioned_sources
from recmtl.data.prepare.spark.plan import Plan, SourcePlan, versions
from recmtl.data.prepare.stored import BATCH_ROWS

TASKS_PER_CORE = 2
"""Executors may become more than there are at the start, and some are slower than others."""


def make_plan(query: Query, memory_limit: str, memory: int, cores: int) -> tuple[Plan, list[Piece], str]:
    """What the tasks must know, what they read, and the SQL type in which the values that rows are dealt by compare.

    Args:
        query: to be run.
        memory_limit: of a task, such as ``4GB``.
        memory: the same in bytes.
        cores: of all executors.

    Raises:
        UserError: a source is neither partitioned nor small, or what sources are partitioned by does not compare.
    """
    db, recipe = query.db, query.recipe
    types = {source.name: column_types(db, quote(source.name)) for source in recipe.sources}
    dealt = partitioned_sources(recipe, query.files, types)
    sql_type = partition_type(recipe, dealt, types)
    needed = _needed_columns(query, {name: types[name] for name in query.views})
    sources: list[SourcePlan] = []
    pieces: list[Piece] = []
    for source in recipe.sources:
        if source.sql:
            continue
        view, files, of_source = query.views[source.name], query.files[source.name], types[source.name]
        carried = None
        if source in dealt:
            names = [
                name
                for name, kind in of_source.items()
                if (name == source.partition_by or (source.name, name) in needed) and not refusal(kind)
            ]
            columns = f"select {', '.join(map(quote, names))} from {quote(source.name)} limit 0"
            carried = arrow_batches(db, columns, BATCH_ROWS).schema
            pieces += cut(source, files, view)
        sources.append(SourcePlan(source.name, tuple(files), view.sql(), of_source, carried))
    ranges = max(-(-count_raw_rows(db, recipe) // rows_at_once(memory)), TASKS_PER_CORE * cores)
    plan = Plan(
        recipe,
        memory_limit,
        tuple(sources),
        partitions=ranges if dealt else 1,
        ranges=ranges,
        types=query.types,
        selected=column_types(db, SELECTED),
        condition=query.condition,
        encoder=query.encoder,
        others=query.others,
        versions=versions(),
    )
    return plan, pieces, sql_type


def _needed_columns(query: Query, types: dict[str, dict[str, str]]) -> set[tuple[str, str]]:
    """The columns of the sources of files that the recipe's columns of the query depend on, as (source, column)."""
    recipe = query.recipe
    used = [*recipe.read_columns, *recipe.predicted, *recipe.segments, *recipe.split.key]
    used += [*key_columns(recipe, query.types), *([recipe.split.column] if recipe.split.column else [])]
    return set().union(*columns_behind(recipe, types, dict.fromkeys(used)).values())
