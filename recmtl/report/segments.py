"""The page's section on segments: how good a model is on the test rows with each value of a column."""

from __future__ import annotations

from html import escape

from recmtl.report.data_section import folded, grid
from recmtl.report.numbers import NOTHING, show_amount, show_metric
from recmtl.report.rows import Row, binary_tasks, tasks
from recmtl.report.runs import TaskMetrics, Value

BINARY = {"AUC": "auc", "log loss": "logloss", "calibration": "calibration"}
NUMBERS = {"MAE": "mae", "RMSE": "rmse", "bias": "bias"}
"""Metrics by their titles."""


def segments_section(rows: list[Row]) -> str:
    """A table for each task and column; empty where no run measured by segment."""
    columns = list(dict.fromkeys(column for row in rows for run in row.runs for column in run.segments))
    if not columns:
        return ""
    binary = binary_tasks(rows)
    tables = "".join(_table(rows, task, column, task in binary) for task in tasks(rows) for column in columns)
    return f"""<h2>By segment</h2>
<p class=note>Test rows with one value of a column, those with most rows first. ± is the standard error of a single
run's metric, several runs show their mean. Calibration is the mean prediction over the fraction of positives, bias over
the mean label.</p>{tables}"""


def _table(rows: list[Row], task: str, column: str, binary: bool) -> str:
    measured = [row for row in rows if any(column in run.segments for run in row.runs)]
    runs = [run for row in measured for run in row.runs if column in run.segments]
    values = list(dict.fromkeys(value for run in runs for value in run.segments[column].tasks))
    titles = BINARY if binary else NUMBERS
    head = [column, "rows", "base rate" if binary else "mean label"]
    head += [title if len(measured) == 1 else f"{row.label} {title}" for row in measured for title in titles]
    lines = [_line(measured, task, column, value, binary) for value in values]
    first = runs[0].segments[column]
    more = f"<p class=note>{first.left_out:,} more values, {first.left_out_rows:,} rows.</p>" if first.left_out else ""
    return folded(f"{escape(task)} by {escape(column)}", grid(head, lines) + more, len(lines))


def _line(rows: list[Row], task: str, column: str, value: str, binary: bool) -> list[str]:
    found = [_metrics(row, task, column, value) for row in rows]
    known = next((metrics[0] for metrics in found if metrics), {})
    count, mean = known.get("rows"), known.get("base_rate" if binary else "mean_label")
    cells = [escape(value), NOTHING if count is None else f"{int(count):,}", _shown(mean, None, "base_rate")]
    for metrics in found:
        for name in (BINARY if binary else NUMBERS).values():
            numbers = [number for one in metrics if (number := one.get(name)) is not None]
            error = metrics[0].get(f"{name}_se") if len(metrics) == 1 else None
            cells.append(_shown(sum(numbers) / len(numbers) if numbers else None, error, name))
    return cells


def _metrics(row: Row, task: str, column: str, value: str) -> list[TaskMetrics]:
    """Of the runs of a row that have the segment."""
    found = [run.segments[column].tasks.get(value, {}) for run in row.runs if column in run.segments]
    return [tasks[task] for tasks in found if task in tasks]


def _shown(value: Value, error: Value, name: str) -> str:
    if value is None:
        return NOTHING
    show = show_amount if name in ("mae", "rmse", "base_rate") else show_metric
    mean, _, spread = show(value, error).partition(" ± ")
    return mean + (f"<small>± {spread}</small>" if spread else "")
