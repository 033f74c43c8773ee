"""Which columns of the raw files each column of a recipe's query is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable

import duckdb

from recmtl.data.prepare.duck import quote
from recmtl.data.prepare.examples import ROWS, create_query
from recmtl.data.prepare.queries import create_query_view
from recmtl.data.recipe import Recipe
from recmtl.schema import SourceColumns

MARK = re.compile(r"@column (\d+)@")
RULES_OUT = "statistics_propagation,empty_result_pullup"
"""Optimisations that leave out the reading of a table in which there is nothing."""


def columns_behind(
    recipe: Recipe, sources: SourceColumns, columns: Iterable[str]
) -> dict[str, frozenset[tuple[str, str]]]:
    """The columns of the sources, as (source, column), that each column of the query depends on.

    DuckDB tells: its plan of a query for one column reads no other columns than those that the result depends on, those
    that decide which rows there are among them. The plan is made on empty tables whose columns have names that can be
    found in it.

    Args:
        recipe: its query and its sources.
        sources: names and types of the columns of the sources that are files.
        columns: of the query.
    """
    db = duckdb.connect()
    try:
        db.execute(f"set disabled_optimizers = '{RULES_OUT}'")
        db.execute("set explain_output = 'physical_only'")
        marked: list[tuple[str, str]] = []
        for source in recipe.sources:
            if source.sql:
                where = f"{recipe.origin}: [sources] {source.name!r}: sql"
                create_query_view(db, quote(source.name), source.sql, where)
                continue
            stored, shown = [], []
            for column, sql_type in sources[source.name].items():
                mark = quote(f"@column {len(marked)}@")
                marked.append((source.name, column))
                stored.append(f"{mark} {sql_type}")
                shown.append(f"{mark} as {quote(column)}")
            table = quote(f"#files of {source.name}")
            db.execute(f"create table {table} ({', '.join(stored)})")
            db.execute(f"create view {quote(source.name)} as select {', '.join(shown)} from {table}")
        create_query(db, recipe)
        found = {}
        for column in columns:
            plan = str(db.execute(f"explain (format json) select {quote(column)} from {ROWS}").fetchall())
            found[column] = frozenset(marked[int(number)] for number in MARK.findall(plan))
        return found
    finally:
        db.close()
