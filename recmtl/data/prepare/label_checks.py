"""Labels, true probabilities and weights of the examples, checked: one line for what is wrong, with file and row."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import duckdb

from recmtl.data.prepare.duck import first_row, quote
from recmtl.data.prepare.facts import Facts
from recmtl.data.recipe import Recipe, TaskSpec
from recmtl.errors import UserError

LARGEST = 3.4e38
"""About the largest number of float32."""
RULES = {
    "binary": ("must be 0, 1 or null", "not in (0, -1)"),
    "regression": ("must be a finite number or null", f"not between -{LARGEST} and {LARGEST}"),
    "duration": ("must be a finite number of 0 or more, or null", f"not between -{LARGEST} and 0"),
}
"""What a label must be, and what the negative of a wrong one is in SQL, by the kind of the task."""
WEIGHT_RULE = ("must be a finite number of 0 or more", f"not between -{LARGEST} and 0")


@dataclass(frozen=True)
class _Check:
    """What a column must be."""

    where: str
    """The key that names the column."""
    column: str
    rule: str
    """In words."""
    wrong: str
    """Condition for rows that break it."""


def label_questions(recipe: Recipe) -> dict[str, str | None]:
    """The conditions that `check_labels` must know the counts of, and of which column an example is wanted."""
    found: dict[str, str | None] = {check.wrong: check.column for check in _checks(recipe)}
    for task in recipe.tasks:
        if task.oracle:
            found.update(dict.fromkeys(_of_oracle(task)))
    return found


def check_labels(db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: int, facts: Facts) -> frozenset[str]:
    """Look at the labels, true probabilities and weights of all rows; return the tasks whose probabilities are known.

    Args:
        db: has the views of the sources.
        recipe: names the columns.
        rows: how many there are.
        facts: of all rows, with those of `label_questions`.

    Raises:
        UserError: one is not what it must be; names the column and, where a raw file has it, file and row.
    """
    for check in _checks(recipe):
        if count := facts.counts[check.wrong]:
            value = facts.values.get(check.wrong)
            raise UserError(
                f"{recipe.origin}: {check.where} {_example(db, recipe, check, value, count)}; it {check.rule}"
            )
    return frozenset(task.name for task in recipe.tasks if task.oracle and _has_oracle(recipe, task, rows, facts))


def _checks(recipe: Recipe) -> list[_Check]:
    checks = []
    for task in recipe.tasks:
        rule, condition = RULES[task.kind]
        checks.append(_Check(f"[[task]] {task.name!r}: label", task.label, rule, _wrong(task.label, condition, False)))
    weights = [("weight", recipe.weight)] if recipe.weight is not None else []
    weights += [(f"[[task]] {t.name!r}: row_weight", t.row_weight) for t in recipe.tasks if t.row_weight is not None]
    rule, condition = WEIGHT_RULE
    checks += [_Check(where, column, rule, _wrong(column, condition, True)) for where, column in weights]
    return checks


def _wrong(column: str, rule: str, null_is_wrong: bool) -> str:
    """A condition for the rows where a column's value is wrong. NaN is above every number, and so never between two.

    It is of the negative value: of a column itself the engine asks the statistics of a Parquet file first, in which NaN
    has no part, and finds none.
    """
    name = quote(column)
    null = f"{name} is null or " if null_is_wrong else ""
    return f"({null}-cast({name} as double) {rule})"


def _example(db: duckdb.DuckDBPyConnection, recipe: Recipe, check: _Check, value: object, count: int) -> str:
    """A wrong value with the raw file and row where a source has the column."""
    place = ""
    for source in recipe.sources:
        # The column may be computed, then no source has it.
        with contextlib.suppress(duckdb.Error):
            columns = f"filename, file_row_number, {quote(check.column)}"
            query = f"select {columns} from {quote(source.name)} where {check.wrong}"
            if row := first_row(db, f"{query} order by 1, 2 limit 1"):
                value, place = row[2], f" at {row[0]}, row {row[1]} (counted from 0)"
                break
    shown = "null" if value is None else value
    return f"{check.column!r} is {shown}{place}, {count} wrong in all"


def _of_oracle(task: TaskSpec) -> tuple[str, str]:
    """Conditions for rows whose true probability is known, and for those where it is none."""
    oracle = quote(str(task.oracle))
    return f"{oracle} is not null", f"not ({oracle} between 0 and 1)"


def _has_oracle(recipe: Recipe, task: TaskSpec, rows: int, facts: Facts) -> bool:
    known, bad = (facts.counts[condition] for condition in _of_oracle(task))
    if known and (bad or known < rows):
        where = f"{recipe.origin}: [[task]] {task.name!r}: oracle: column {task.oracle!r}"
        raise UserError(f"{where} must be a probability in every row, or null in all of them")
    return bool(known)
