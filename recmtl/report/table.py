"""The table: AUC and log loss of every task, time, memory and rate of every row, as Markdown and CSV."""

from __future__ import annotations

import csv as csv_files
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from recmtl.entropy import entropy
from recmtl.report.numbers import NOTHING, show_bytes, show_count, show_epochs, show_metric, show_seconds
from recmtl.report.rows import Row, tasks
from recmtl.report.runs import Run, RunWithoutResults, Value, metric, total_logloss


@dataclass(frozen=True)
class Column:
    """A column of the table: where its numbers come from and how they are shown."""

    title: str
    value: Callable[[Run], Value]
    show: Callable[[float, Value], str]
    """(mean, deviation or None) → text."""
    best: Callable[[Iterable[float]], float] | None = None
    """max, min, or None where no value is better than another."""
    plain: str = ""
    """The title with the unit of the value, where people get another."""
    oracle: Value = None
    base_rate: Value = None
    headline: bool = False
    """Its best value stands above the table."""
    optional: bool = False
    """Left out where no run has a value."""

    @property
    def head(self) -> str:
        """The title in a spreadsheet."""
        return self.plain or self.title


@dataclass(frozen=True)
class Cell:
    """A number of the table."""

    mean: Value
    deviation: Value = None
    text: str = NOTHING
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A line of the table: a row of runs, or one to compare them with."""

    label: str
    """For people; Markdown and CSV name the run folders where the model alone is ambiguous."""
    name: str
    runs: int
    """How many; 0: the oracle or the base rate."""
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """The table of one dataset."""

    columns: list[Column]
    lines: list[Line]


def tabulate(rows: list[Row]) -> Table:
    """The table of rows on one dataset."""
    runs = [run for row in rows for run in row.runs]
    columns = [column for column in _columns(rows, runs) if not column.optional or _known(column.value, runs)]
    cells = [_cells(column, rows) for column in columns]
    lines = [Line(row.label, row.name, len(row.runs), [column[i] for column in cells]) for i, row in enumerate(rows)]
    return Table(columns, [*_reference_lines(columns), *lines])


def markdown(tables: dict[str, Table]) -> str:
    """A heading and a table for each dataset."""
    return "\n\n".join(f"## {dataset}\n\n{_markdown(table)}" for dataset, table in tables.items())


def _markdown(table: Table) -> str:
    lines = [
        ["model", *(column.title for column in table.columns)],
        ["---", *("---:" for _ in table.columns)],
        *([line.name.replace("|", "\\|"), *(_bold(cell) for cell in line.cells)] for line in table.lines),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv(tables: dict[str, Table], others: Sequence[RunWithoutResults] = ()) -> str:
    """One table of all datasets: mean and deviation of every column in full precision, empty where unknown.

    Lines of `others` have no metrics, but a state and a step.
    """
    heads = list(dict.fromkeys(column.head for table in tables.values() for column in table.columns))
    out = io.StringIO()
    writer = csv_files.writer(out, lineterminator="\n")
    writer.writerow(
        ["dataset", "model", "runs", "state", "step", *(cell for head in heads for cell in (head, f"{head} deviation"))]
    )
    for dataset, table in tables.items():
        for line in table.lines:
            cells = {column.head: cell for column, cell in zip(table.columns, line.cells, strict=True)}
            values = [cells.get(head, Cell(None)) for head in heads]
            numbers = ["" if n is None else n for cell in values for n in (cell.mean, cell.deviation)]
            writer.writerow([dataset, line.name, line.runs or "", "", "", *numbers])
    for run in others:
        writer.writerow([run.dataset, f"{run.model} ({run.folder})", 1, run.state, run.step] + [""] * 2 * len(heads))
    return out.getvalue().rstrip("\n")


def _columns(rows: list[Row], runs: list[Run]) -> list[Column]:
    names = tasks(rows)
    entropies = [value for task in names if (value := _base_logloss(task, runs)) is not None]
    total_entropy = sum(entropies) if names and len(entropies) == len(names) else None
    on_device = bool(_known(lambda run: run.device_bytes, runs))
    device = Column("device GB", lambda run: run.device_bytes, show_bytes, min, "device bytes", optional=True)
    host = Column("host GB", lambda run: run.host_bytes, show_bytes, min, "host bytes", optional=True)
    return [
        *(column for task in names for column in _task_columns(task, runs)),
        Column("log loss", total_logloss(names), show_metric, min, base_rate=total_entropy, headline=True),
        Column("train+val", lambda run: run.train_val_seconds, show_seconds, min, "train+val seconds", headline=True),
        replace(device, headline=on_device),
        replace(host, headline=not on_device),
        Column("examples/s", lambda run: run.examples_per_second, show_count, max, headline=True),
        Column("epochs", lambda run: run.epochs, show_epochs),
    ]


def _task_columns(task: str, runs: list[Run]) -> list[Column]:
    """AUC, grouped AUC and log loss of one task."""
    oracle = next(iter(_known(metric(task, "oracle_auc"), runs)), None)
    return [
        Column(f"{task} AUC", metric(task, "auc"), show_metric, max, oracle=oracle, base_rate=0.5, headline=True),
        Column(f"{task} GAUC", metric(task, "gauc"), show_metric, max, optional=True),
        Column(f"{task} log loss", metric(task, "logloss"), show_metric, min, base_rate=_base_logloss(task, runs)),
    ]


def _base_logloss(task: str, runs: list[Run]) -> Value:
    rates = _known(metric(task, "base_rate"), runs)
    return entropy(rates[0]) if rates else None


def _known(value: Callable[[Run], Value], runs: list[Run]) -> list[float]:
    """The values of the runs that have one."""
    return [known for run in runs if (known := value(run)) is not None]


def _cells(column: Column, rows: list[Row]) -> list[Cell]:
    """The cells of one column; the best stands out where there is something to compare."""
    means = [row.mean(column.value) for row in rows]
    known = [mean for mean in means if mean is not None]
    best = column.best(known) if column.best and len(known) > 1 else None
    deviations = [row.deviation(column.value) for row in rows]
    return [
        Cell(None) if mean is None else Cell(mean, deviation, column.show(mean, deviation), mean == best)
        for mean, deviation in zip(means, deviations, strict=True)
    ]


def _reference_lines(columns: list[Column]) -> list[Line]:
    """The lines of the oracle, where it is known for a task, and of the base rate."""
    lines = {"oracle": [column.oracle for column in columns], "base rate": [column.base_rate for column in columns]}
    return [
        Line(label, label, 0, [Cell(None) if v is None else Cell(v, text=show_metric(v, None)) for v in values])
        for label, values in lines.items()
        if any(value is not None for value in values)
    ]


def _bold(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.best else cell.text
