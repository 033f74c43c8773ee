"""What checks and splits must know of all rows of a recipe's query: counts, found in one scan, that add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import duckdb

from recmtl.data.prepare.duck import first_row, quote
from recmtl.data.prepare.examples import STORED


@dataclass(frozen=True)
class Questions:
    """What to find out of the rows of `STORED`."""

    conditions: dict[str, str | None]
    """SQL conditions whose rows to count, each with the column of which one such row's value is wanted; None: of
    none."""
    groups: str | None = None
    """SQL expression, whose values to count; None: of none."""


@dataclass
class Facts:
    """The answers, of some rows or of all."""

    counts: Counter[str] = field(default_factory=Counter)
    """Rows that meet a condition."""
    values: dict[str, Any] = field(default_factory=dict)
    """Value of one row that meets a condition, where there is one that is not null."""
    groups: Counter[str | None] = field(default_factory=Counter)
    """Rows with each value of the expression."""

    def merge(self, other: Facts) -> None:
        """Add what other rows say."""
        self.counts.update(other.counts)
        self.values = other.values | self.values
        self.groups.update(other.groups)


def find_facts(db: duckdb.DuckDBPyConnection, questions: Questions) -> Facts:
    """Ask the rows of `STORED`."""
    facts = Facts()
    wanted = []
    for condition, column in questions.conditions.items():
        value = "null" if column is None else f"any_value({quote(column)}) filter (where {condition})"
        wanted += [f"count(*) filter (where {condition})", value]
    if wanted:
        found = first_row(db, f"select {', '.join(wanted)} from {STORED}") or ()
        for condition, count, value in zip(questions.conditions, found[::2], found[1::2], strict=True):
            facts.counts[condition] = count
            if value is not None:
                facts.values[condition] = value
    if questions.groups is not None:
        facts.groups.update(
            dict(db.execute(f"select {questions.groups}, count(*) from {STORED} group by 1").fetchall())
        )
    return facts
