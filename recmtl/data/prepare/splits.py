"""Deals the examples into train, val and test."""

from __future__ import annotations

import math
from collections.abc import Callable

import duckdb

from recmtl.data.prepare.duck import column_types, first_row, literal
from recmtl.data.prepare.examples import EXAMPLES, HASH, SPLIT, SPLIT_KEY, SPLIT_VALUE, STORED
from recmtl.data.recipe import Recipe
from recmtl.errors import UserError
from recmtl.schema import FLOATS, SPLITS

Asked = dict[str, float]
"""Number of rows that the recipe asks for, by split; no entry where it asks for none."""


def assign_splits(db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: int) -> Asked:
    """Create the view `EXAMPLES`, in which every row has its split; return what was asked for.

    Raises:
        UserError: a row has no time, or no known split.
    """
    rules: dict[str, Callable[[duckdb.DuckDBPyConnection, Recipe, int], tuple[str, Asked]]]
    rules = {"random": _random, "time": _time, "column": _column}
    rule, asked = rules[recipe.split.by](db, recipe, rows)
    db.execute(f"create view {EXAMPLES} as select *, cast({rule} as utinyint) as {SPLIT} from {STORED}")
    return asked


def _random(db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: int) -> tuple[str, Asked]:
    split = recipe.split
    column = SPLIT_KEY if split.key else HASH
    train = 1 - split.val_fraction - split.test_fraction
    rule = (
        f"case when {_below(column, train)} then 0 when {_below(column, train + split.val_fraction)} then 1 else 2 end"
    )
    return rule, {"val": split.val_fraction * rows, "test": split.test_fraction * rows}


def _below(column: str, fraction: float) -> str:
    """Whether a hash is among the lowest `fraction` of all hashes."""
    return f"{column} <= {int(fraction * 2**53) * 2**11 - 1}" if fraction > 0 else "false"


def _time(db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: int) -> tuple[str, Asked]:
    """The last rows by time; the hash decides between rows of the same time, so that the counts are exact."""
    split = recipe.split
    _check_times(db, recipe)
    test = round(rows * split.test_fraction)
    val = round(rows * split.val_fraction)
    rule = f"case when {_from_rank(db, rows - test)} then 2 when {_from_rank(db, rows - test - val)} then 1 else 0 end"
    return rule, {"val": split.val_fraction * rows, "test": split.test_fraction * rows}


def _check_times(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> None:
    """Raises UserError where a row has no time, or one that is no moment: NaN and infinity sort after all others."""
    sql_type = column_types(db, STORED)[SPLIT_VALUE.strip('"')]
    bad = {"null": f"{SPLIT_VALUE} is null"}
    if sql_type in FLOATS:
        bad["NaN"] = f"isnan({SPLIT_VALUE})"
    if sql_type in FLOATS or sql_type == "DATE" or sql_type.startswith("TIMESTAMP"):
        bad["infinite"] = f"isinf({SPLIT_VALUE})"
    for name, condition in bad.items():
        if count := _count(db, condition):
            where = f"{recipe.origin}: [split]: column {recipe.split.column!r}"
            raise UserError(f"{where} is {name} in {count} rows; leave them out in sql")


def _count(db: duckdb.DuckDBPyConnection, condition: str) -> int:
    row = first_row(db, f"select count(*) from {STORED} where {condition}")
    return row[0] if row else 0


def _from_rank(db: duckdb.DuckDBPyConnection, rank: int) -> str:
    """Whether a row is not among the first `rank` ones by time."""
    query = f"select cast({SPLIT_VALUE} as varchar), {HASH}, typeof({SPLIT_VALUE}) from {STORED}"
    first = first_row(db, f"{query} order by {SPLIT_VALUE}, {HASH} limit 1 offset {rank}")
    if first is None:
        return "false"
    moment = f"cast({literal(first[0])} as {first[2]})"
    return f"{SPLIT_VALUE} > {moment} or ({SPLIT_VALUE} = {moment} and {HASH} >= {first[1]})"


def _column(db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: int) -> tuple[str, Asked]:
    split = recipe.split
    names = f"cast({SPLIT_VALUE} as varchar)"
    known = ", ".join(literal(name) for name in SPLITS)
    found = db.execute(f"select {names}, count(*) from {STORED} group by 1 order by 2 desc").fetchall()
    for name, count in found:
        if name not in SPLITS:
            value = "null" if name is None else repr(name)
            raise UserError(
                f"{recipe.origin}: [split]: column {split.column!r} is {value} in {count} rows; it must be {known}"
            )
    rule = f"when {names} = 'test' then 2 when {names} = 'val' then 1"
    counts = dict(found)
    if "val" in counts:
        return f"case {rule} else 0 end", {}
    asked = {"val": split.val_fraction * counts.get("train", 0)}
    return f"case {rule} when {_below(HASH, split.val_fraction)} then 1 else 0 end", asked


def far_from_asked(asked: Asked, rows: dict[str, int]) -> str:
    """Says in one line which splits are far from what the recipe asks for; empty where none is.

    Chance alone makes a split of n rows differ by some √n. Far is what differs by more than four times that, and by a
    tenth of what was asked for, or is empty.
    """
    far = [
        f"{rows[split]:,} {split} rows, not about {count:,.0f}"
        for split, count in asked.items()
        if abs(rows[split] - count) > max(4 * math.sqrt(count), count / 10) or (count >= 1 and not rows[split])
    ]
    if not far:
        return ""
    return (
        f"[split]: {' and '.join(far)}: few or very unequal groups of rows stay together; choose another key or split"
    )
