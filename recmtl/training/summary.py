"""What `recmtl train` and `recmtl evaluate` print of their results: aligned tables, one for each kind of task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from recmtl.metrics.names import Values
from recmtl.metrics.segments import Segments
from recmtl.training.results import Results

Column = tuple[str, str, int]
"""Title, metric and width; ± is the standard error of the metric before it."""
BINARY: tuple[Column, ...] = (
    *(("AUC", "auc", 8), ("±", "auc_se", 8), ("oracle", "oracle_auc", 8), ("GAUC", "gauc", 8)),
    *(("log loss", "logloss", 9), ("NE", "ne", 7), ("calibr.", "calibration", 8), ("base", "base_rate", 8)),
)
NUMBERS: tuple[Column, ...] = (
    *(("MAE", "mae", 10), ("±", "mae_se", 8), ("RMSE", "rmse", 10), ("±", "rmse_se", 8), ("R²", "r2", 7)),
    *(("XAUC", "xauc", 7), ("bias", "bias", 7), ("mean", "mean_label", 10)),
)
IN_SEGMENTS = ("auc", "auc_se", "logloss", "calibration", "base_rate", "mae", "mae_se", "rmse", "bias", "mean_label")
"""Metrics of the tables by segment."""


def summary(results: Results, split: str) -> str:
    """The metrics of one split as text: a table of the binary tasks, one of the others, then those by segment."""
    tables = [_table("task", columns, metrics.items()) for columns, metrics in _by_kind(results[split])]
    for name, segments in results.get("segments", {}).get(split, {}).items():
        tables += [_segment_table(task, name, segments) for task in results[split]]
    return "\n\n".join("\n".join(lines) for lines in tables)


def _by_kind(metrics: dict[str, Values]) -> list[tuple[tuple[Column, ...], dict[str, Values]]]:
    """Columns, and the metrics of the tasks that have them."""
    binary = {task: values for task, values in metrics.items() if "logloss" in values}
    numbers = {task: values for task, values in metrics.items() if task not in binary}
    return [(columns, found) for columns, found in ((BINARY, binary), (NUMBERS, numbers)) if found]


def _segment_table(task: str, name: str, segments: Segments) -> list[str]:
    found = {value["value"]: value["tasks"][task] for value in segments["values"]}
    columns = next((columns for columns, _ in _by_kind(found)), BINARY)
    lines = _table(f"{task} by {name}", [column for column in columns if column[1] in IN_SEGMENTS], found.items())
    if segments["left_out"]:
        lines.append(f"{segments['left_out']:,} more values, {segments['left_out_rows']:,} rows")
    return lines


def _table(title: str, columns: Iterable[Column], rows: Iterable[tuple[str, Values]]) -> list[str]:
    rows, columns = list(rows), list(columns)
    first = max(16, len(title), *(len(name) for name, _ in rows)) if rows else max(16, len(title))
    lines = [" ".join([f"{title:{first}}", *(f"{head:>{width}}" for head, _, width in columns), f"{'rows':>12}"])]
    for name, values in rows:
        cells = [_cell(values.get(metric), width) for _, metric, width in columns]
        lines.append(" ".join([f"{name:{first}}", *cells, f"{values['rows']:>12,}"]))
    return lines


def _cell(value: Any, width: int) -> str:
    return f"{'n/a':>{width}}" if value is None else f"{value:>{width}.4f}"
