"""Labels and true probabilities of the examples: checked, counted by split."""

from __future__ import annotations

import contextlib

import duckdb

from recmtl.data.prepare.duck import first_row, quote
from recmtl.data.prepare.examples import EXAMPLES, SPLIT
from recmtl.data.recipe import Recipe, TaskSpec
from recmtl.errors import UserError
from recmtl.schema import SPLITS, Task


def describe_tasks(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> tuple[dict[str, int], tuple[Task, ...]]:
    """Rows by split, and the tasks with their base rates.

    Raises:
        UserError: a label is not 0 or 1, a true probability is not in 0 … 1, or no row is for training.
    """
    counts = ", ".join(_counts(task) for task in recipe.tasks)
    found = db.execute(f"select {SPLIT}, count(*), {counts} from {EXAMPLES} group by 1 order by 1").fetchall()
    by_split = {SPLITS[split]: (total, numbers) for split, total, *numbers in found}
    rows = {split: by_split[split][0] if split in by_split else 0 for split in SPLITS}
    tasks = []
    for i, spec in enumerate(recipe.tasks):
        numbers = {split: tuple(values[4 * i : 4 * i + 4]) for split, (_, values) in by_split.items()}
        bad_labels, _, known, bad_oracles = (sum(column) for column in zip(*numbers.values(), strict=True))
        if bad_labels:
            raise UserError(_bad_label(db, recipe, spec, bad_labels))
        if known and (bad_oracles or known < sum(rows.values())):
            where = f"{recipe.origin}: [[task]] {spec.name!r}: oracle: column {spec.oracle!r}"
            raise UserError(f"{where} must be a probability in every row, or null in all of them")
        base_rate = {split: numbers[split][1] / rows[split] for split in by_split}
        tasks.append(Task(spec.name, spec.weight, spec.parent, spec.relation, bool(known), base_rate, spec.label))
    if not rows["train"]:
        raise UserError(f"{recipe.origin}: [split]: no row is left for training; change the split")
    return rows, tuple(tasks)


def _counts(task: TaskSpec) -> str:
    """Wrong labels, positive labels, known true probabilities, wrong true probabilities."""
    label, oracle = quote(task.label), quote(task.oracle) if task.oracle else "cast(null as double)"
    return (
        f"count(*) filter (where {_is_wrong(label)}), count(*) filter (where {label} = 1), "
        f"count({oracle}), count(*) filter (where not ({oracle} between 0 and 1))"
    )


def _is_wrong(label: str) -> str:
    return f"({label} is null or {label} not in (0, 1))"


def _bad_label(db: duckdb.DuckDBPyConnection, recipe: Recipe, task: TaskSpec, count: int) -> str:
    """Says what is wrong, and in which raw file and row if a source has the column."""
    label = quote(task.label)
    row = first_row(db, f"select {label} from {EXAMPLES} where {_is_wrong(label)} limit 1")
    value, place = (row[0] if row else None), ""
    for source in recipe.sources:
        # The label may be computed, then no source has it.
        with contextlib.suppress(duckdb.Error):
            query = f"select filename, file_row_number, {label} from {quote(source.name)} where {_is_wrong(label)}"
            if row := first_row(db, f"{query} order by 1, 2 limit 1"):
                value, place = row[2], f" at {row[0]}, row {row[1]} (counted from 0)"
                break
    shown = "null" if value is None else value
    return (
        f"{recipe.origin}: [[task]] {task.name!r}: label {task.label!r} is {shown}{place}, {count} wrong in all; "
        "it must be 0 or 1: mend the data or the sql"
    )
