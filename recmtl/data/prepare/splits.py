"""Deals the examples into train, val and test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import duckdb

from recmtl.data.prepare.duck import first_row, literal
from recmtl.data.prepare.examples import EXAMPLES, HASH, SPLIT, SPLIT_KEY, SPLIT_VALUE, STORED
from recmtl.data.prepare.facts import Facts
from recmtl.data.recipe import Recipe
from recmtl.errors import UserError
from recmtl.schema import FLOATS, SPLITS

Asked = dict[str, float]
"""Number of rows that the recipe asks for, by split; no entry where it asks for none."""


class Place(NamedTuple):
    """A row's place by time."""

    moment: str
    """Its `SPLIT_VALUE` as text."""
    hash: int
    sql_type: str
    """Of `SPLIT_VALUE`."""


Ranked = Callable[[Iterable[int]], list[Place | None]]
"""Gives the places of the rows of these ranks, from 0, by time and hash; None where there is no such row."""


def split_rule(recipe: Recipe, rows: int, facts: Facts, ranked: Ranked) -> tuple[str, Asked]:
    """SQL of the index into `SPLITS` of a row, and what was asked for.

    Args:
        recipe: says how rows are dealt.
        rows: how many there are.
        facts: of all rows, with those of `split_questions`.
        ranked: finds rows by time.

    Raises:
        UserError: a row has no time, or no known split.
    """
    if recipe.split.by == "time":
        return _time(recipe, rows, facts, ranked)
    return _random(recipe, rows) if recipe.split.by == "random" else _column(recipe, facts)


def split_questions(recipe: Recipe, types: dict[str, str]) -> tuple[dict[str, None], str | None]:
    """What `split_rule` must know of all rows: how many meet each condition, and the counts of the values of an
    expression (None: of none).

    Args:
        recipe: says how rows are dealt.
        types: of the columns of `STORED`.
    """
    if recipe.split.by == "time":
        return dict.fromkeys(_bad_times(types[SPLIT_VALUE.strip('"')]).values()), None
    return {}, _NAMES if recipe.split.by == "column" else None


def create_examples(db: duckdb.DuckDBPyConnection, rule: str) -> None:
    """Create the view `EXAMPLES`, in which every row of `STORED` has its split by a rule."""
    db.execute(f"create view {EXAMPLES} as select *, cast({rule} as utinyint) as {SPLIT} from {STORED}")


def ranked_rows(db: duckdb.DuckDBPyConnection, ranks: Iterable[int]) -> list[Place | None]:
    """`Ranked` for the rows of `STORED`."""
    query = f"select cast({SPLIT_VALUE} as varchar), {HASH}, typeof({SPLIT_VALUE}) from {STORED}"
    found = (first_row(db, f"{query} order by {SPLIT_VALUE}, {HASH} limit 1 offset {rank}") for rank in ranks)
    return [None if row is None else Place(*row) for row in found]


def _random(recipe: Recipe, rows: int) -> tuple[str, Asked]:
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


def _time(recipe: Recipe, rows: int, facts: Facts, ranked: Ranked) -> tuple[str, Asked]:
    """The last rows by time; the hash decides between rows of the same time, so that the counts are exact."""
    split = recipe.split
    _check_times(recipe, facts)
    test = round(rows * split.test_fraction)
    val = round(rows * split.val_fraction)
    first_test, first_val = (from_place(place) for place in ranked([rows - test, rows - test - val]))
    rule = f"case when {first_test} then 2 when {first_val} then 1 else 0 end"
    return rule, {"val": split.val_fraction * rows, "test": split.test_fraction * rows}


def _bad_times(sql_type: str) -> dict[str, str]:
    """Conditions for rows without a time, or with one that is no moment: NaN and infinity sort after all others."""
    bad = {"null": f"{SPLIT_VALUE} is null"}
    if sql_type in FLOATS:
        bad["NaN"] = f"isnan({SPLIT_VALUE})"
    if sql_type in FLOATS or sql_type == "DATE" or sql_type.startswith("TIMESTAMP"):
        bad["infinite"] = f"isinf({SPLIT_VALUE})"
    return bad


def _check_times(recipe: Recipe, facts: Facts) -> None:
    for name, condition in _bad_times("DOUBLE").items():
        if count := facts.counts.get(condition):
            where = f"{recipe.origin}: [split]: column {recipe.split.column!r}"
            raise UserError(f"{where} is {name} in {count} rows; leave them out in sql")


def from_place(first: Place | None) -> str:
    """Whether a row is at this place by time or after it."""
    if first is None:
        return "false"
    moment = f"cast({literal(first.moment)} as {first.sql_type})"
    return f"{SPLIT_VALUE} > {moment} or ({SPLIT_VALUE} = {moment} and {HASH} >= {first.hash})"


_NAMES = f"cast({SPLIT_VALUE} as varchar)"
"""The name of a row's split, where a column tells it."""


def _column(recipe: Recipe, facts: Facts) -> tuple[str, Asked]:
    split, counts = recipe.split, facts.groups
    known = ", ".join(literal(name) for name in SPLITS)
    for name, count in sorted(counts.items(), key=lambda group: -group[1]):
        if name not in SPLITS:
            value = "null" if name is None else repr(name)
            raise UserError(
                f"{recipe.origin}: [split]: column {split.column!r} is {value} in {count} rows; it must be {known}"
            )
    rule = f"when {_NAMES} = 'test' then 2 when {_NAMES} = 'val' then 1"
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
