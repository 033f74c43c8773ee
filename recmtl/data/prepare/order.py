"""An order for the rows of a recipe's query, where the query leaves theirs open."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import duckdb

from recmtl.data.prepare.duck import quote
from recmtl.data.prepare.examples import hash_of
from recmtl.data.prepare.sources import FILE_ROW_NUMBER, FILENAME
from recmtl.data.recipe import Recipe

KEEPS_ORDER = {
    *("SEQ_SCAN", "TABLE_SCAN", "READ_PARQUET", "PARQUET_SCAN", "ARROW_SCAN", "DUMMY_SCAN", "EMPTY_RESULT"),
    *("PROJECTION", "FILTER", "UNNEST", "UNION", "STREAMING_WINDOW", "LIMIT", "STREAMING_LIMIT"),
}
"""Operators of the engine that give rows in the order in which they get them, where it is told to keep the order."""
ORDERS = {"ORDER_BY", "TOP_N"}
"""Operators that put rows in an order, whatever the one before was."""


def has_order(db: duckdb.DuckDBPyConnection, view: str) -> bool:
    """Whether the rows of a view come in the same order every time: that of the files, or that of an ``order by``.

    The engine's plan tells. An operator that is not known here counts as one that leaves the order open.
    """
    plan = json.loads(db.execute(f"explain (format json) select * from {view}").fetchall()[-1][-1])
    return all(map(_has_order, plan))


def _has_order(operator: dict[str, Any]) -> bool:
    name = operator["name"].strip().upper()
    return name in ORDERS or (name in KEEPS_ORDER and all(map(_has_order, operator["children"])))


def order_of(recipe: Recipe, types: dict[str, str], read: Iterable[str], kept: Iterable[str]) -> str:
    """SQL of an order of the query's rows that depends on nothing but them, as a list of expressions.

    Rows are in the order of the raw files where the query yields a row's place in them, else by time where the recipe
    splits by time. Rows alike in that are in the order of a hash of what the model reads of them, then of a hash of
    what is kept: predictions come in the same order whichever columns are kept.

    Args:
        recipe: of the query.
        types: of the query's columns.
        read: columns that the model reads.
        kept: columns that are written beside the predictions.
    """
    keys = [FILENAME, FILE_ROW_NUMBER]
    if not all(column in types for column in keys):
        split = recipe.split
        keys = [split.column] if split.by == "time" and split.column in types else []
    hashes = [hash_of(map(quote, columns)) for columns in (list(read), list(kept)) if columns]
    return ", ".join([*map(quote, keys), *hashes])
