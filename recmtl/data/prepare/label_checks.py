"""Labels, true probabilities and weights of the examples, checked: one line for what is wrong, with file and row."""

from __future__ import annotations

import contextlib

import duckdb

from recmtl.data.prepare.duck import first_row, quote
from recmtl.data.prepare.examples import EXAMPLES
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


def check_labels(db: duckdb.DuckDBPyConnection, recipe: Recipe, rows: int) -> frozenset[str]:
    """Look at the labels, true probabilities and weights of all rows; return the tasks whose probabilities are known.

    Raises:
        UserError: one is not what it must be; names the column and, where a raw file has it, file and row.
    """
    checks = [(f"[[task]] {task.name!r}: label", task.label, *RULES[task.kind], False) for task in recipe.tasks]
    weights = [("weight", recipe.weight)] if recipe.weight is not None else []
    weights += [(f"[[task]] {t.name!r}: row_weight", t.row_weight) for t in recipe.tasks if t.row_weight is not None]
    checks += [(where, column, *WEIGHT_RULE, True) for where, column in weights]
    conditions = [_wrong(column, rule, null_is_wrong) for _, column, _, rule, null_is_wrong in checks]
    counts = first_row(db, f"select {', '.join(f'count(*) filter (where {c})' for c in conditions)} from {EXAMPLES}")
    for count, condition, (where, column, rule, _, _) in zip(counts or (), conditions, checks, strict=False):
        if count:
            raise UserError(f"{recipe.origin}: {where} {_example(db, recipe, column, condition, count)}; it {rule}")
    return frozenset(task.name for task in recipe.tasks if task.oracle and _has_oracle(db, recipe, task, rows))


def _wrong(column: str, rule: str, null_is_wrong: bool) -> str:
    """A condition for the rows where a column's value is wrong. NaN is above every number, and so never between two.

    It is of the negative value: of a column itself the engine asks the statistics of a Parquet file first, in which NaN
    has no part, and finds none.
    """
    name = quote(column)
    null = f"{name} is null or " if null_is_wrong else ""
    return f"({null}-cast({name} as double) {rule})"


def _example(db: duckdb.DuckDBPyConnection, recipe: Recipe, column: str, condition: str, count: int) -> str:
    """A wrong value with the raw file and row where a source has the column."""
    name = quote(column)
    row = first_row(db, f"select {name} from {EXAMPLES} where {condition} limit 1")
    value, place = (row[0] if row else None), ""
    for source in recipe.sources:
        # The column may be computed, then no source has it.
        with contextlib.suppress(duckdb.Error):
            query = f"select filename, file_row_number, {name} from {quote(source.name)} where {condition}"
            if row := first_row(db, f"{query} order by 1, 2 limit 1"):
                value, place = row[2], f" at {row[0]}, row {row[1]} (counted from 0)"
                break
    shown = "null" if value is None else value
    return f"{column!r} is {shown}{place}, {count} wrong in all"


def _has_oracle(db: duckdb.DuckDBPyConnection, recipe: Recipe, task: TaskSpec, rows: int) -> bool:
    oracle = quote(str(task.oracle))
    found = first_row(
        db, f"select count({oracle}), count(*) filter (where not ({oracle} between 0 and 1)) from {EXAMPLES}"
    )
    known, bad = found or (0, 0)
    if known and (bad or known < rows):
        where = f"{recipe.origin}: [[task]] {task.name!r}: oracle: column {task.oracle!r}"
        raise UserError(f"{where} must be a probability in every row, or null in all of them")
    return bool(known)
