"""The page's section on the data: rows and labels of every split, table sizes, missing and unseen values."""

from __future__ import annotations

from html import escape

from recmtl.report.data import Data, FeatureShares, Labels, TableSize
from recmtl.report.numbers import NOTHING, show_amount
from recmtl.report.rows import Row, tasks
from recmtl.report.runs import Run, metric

SPLITS = ("train", "val", "test")
LONG = 12
"""Lists with more lines are folded up."""


def data_section(rows: list[Row]) -> str:
    """The section; of runs without ``dataset.json`` what their results say of the test split."""
    runs = [run for row in rows for run in row.runs]
    data = next((run.data for run in runs if run.data is not None), None)
    if data is None:
        return f"<h2>Data</h2>{_labels(*_tested(runs, tasks(rows)))}<p class=note>No dataset.json.</p>"
    return f"<h2>Data</h2>{_labels(data.rows, data.labels)}{_tables(data, _dimension(runs))}{_features(data)}"


def _dimension(runs: list[Run]) -> str:
    """The dimension of tables that ask for none of their own."""
    sections = [section for run in runs if isinstance(section := run.config.get("embedding"), dict)]
    return " or ".join(sorted({str(section["dim"]) for section in sections if "dim" in section})) or NOTHING


def _tested(runs: list[Run], names: list[str]) -> tuple[dict[str, int], dict[str, Labels]]:
    """Rows by split, and labels by task, as far as results know them."""
    rows = max(run.test_rows for run in runs)
    found = {task: [rate for run in runs if (rate := metric(task, "base_rate")(run)) is not None] for task in names}
    labels = {task: Labels({"test": known[0]} if known else {}) for task, known in found.items()}
    return ({"test": rows} if rows else {}), labels


def _labels(rows: dict[str, int], tasks: dict[str, Labels]) -> str:
    """Rows of every split, and of every task in them the mean label, and how many labels or positives there are."""
    splits = [split for split in SPLITS if split in rows]
    if not splits:
        return ""
    lines = [["rows", *(f"{rows[split]:,}" for split in splits)]]
    for task, labels in tasks.items():
        cells = [_mean_label(labels, split, rows[split]) if split in labels.rate else NOTHING for split in splits]
        lines.append([escape(task), *cells])
    return grid(["", *splits], lines)


def _mean_label(labels: Labels, split: str, rows: int) -> str:
    """The mean label, and below it what it is the mean of."""
    rate, observed = labels.rate[split], labels.observed.get(split, rows)
    among = f"{observed:,} labels" if observed < rows or labels.is_number else ""
    counted = not labels.is_number and not labels.weighted
    positives = f"{round(rate * observed):,} positives" if counted else ""
    below = [*filter(None, (positives, among)), *(["by weight"] if labels.weighted else [])]
    shown = show_amount(rate) if labels.is_number else _percent(rate)
    return f"{shown}<small>{', '.join(below)}</small>"


def _tables(data: Data, dim: str) -> str:
    """Rows and dimension of every embedding table, the largest first."""
    if not data.tables:
        return ""

    def line(table: TableSize) -> list[str]:
        return [escape(table.name), f"{table.rows:,}", str(table.dim or dim)]

    ordered = sorted(data.tables, key=lambda table: -table.rows)
    total = f"{len(ordered)} embedding tables, {sum(table.rows for table in ordered):,} rows"
    return folded(total, grid(["table", "rows", "dimension"], [line(table) for table in ordered]), len(ordered))


def _features(data: Data) -> str:
    """The shares of missing and unseen values, where one is known; most unseen in the test split first."""
    known = [feature for feature in data.features if feature.missing or feature.unseen]
    if not known:
        return ""

    def order(feature: FeatureShares) -> tuple[float, float]:
        return -feature.unseen.get("test", 0.0), -feature.missing.get("test", 0.0)

    columns = [
        (what, split)
        for what in ("missing", "unseen")
        for split in SPLITS
        if any(split in getattr(feature, what) for feature in known)
    ]

    def line(feature: FeatureShares) -> list[str]:
        shares = [getattr(feature, what).get(split) for what, split in columns]
        cells = [NOTHING if share is None else _percent(share) for share in shares]
        return [escape(feature.name), feature.kind, escape(feature.table) or NOTHING, *cells]

    head = ["feature", "kind", "table", *(f"{what}, {split}" for what, split in columns)]
    lines = [line(feature) for feature in sorted(known, key=order)]
    title = f"Missing and unseen values of {len(known)} features"
    note = "<p class=note>Missing: the log holds no value. Unseen: the training split has too few rows with it.</p>"
    return folded(title, grid(head, lines) + note, len(known))


def folded(title: str, body: str, lines: int) -> str:
    if lines <= LONG:
        return f"<h3>{title}</h3>{body}"
    return f"<details><summary>{title}</summary>{body}</details>"


def grid(head: list[str], lines: list[list[str]]) -> str:
    """A table of cells that are HTML already."""
    titles = "".join(f"<th>{escape(title)}" for title in head)
    body = "".join(f"<tr><th>{first}{''.join(f'<td>{cell}' for cell in rest)}" for first, *rest in lines)
    return f"<div class=scroll><table class=fit><thead><tr>{titles}</thead><tbody>{body}</tbody></table></div>"


def _percent(share: float) -> str:
    """Three digits: 12.6 %, 0.0125 %."""
    return f"{100 * share:.3g} %"
