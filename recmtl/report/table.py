"""The table: the metrics of every task, time, memory and rate of every row, as Markdown and CSV."""

from __future__ import annotations

import csv as csv_files
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from recmtl.metrics.entropy import entropy
from recmtl.report.confidence import ERRORS, Gap, auc_error, gaps, single_error
from recmtl.report.numbers import NOTHING, show_amount, show_bytes, show_count, show_epochs, show_metric, show_seconds
from recmtl.report.rows import Row, binary_tasks, tasks
from recmtl.report.runs import Run, RunWithoutResults, Value, metric, total_logloss


@dataclass(frozen=True)
class Column:
    """A column of the table: where its numbers come from and how they are shown."""

    title: str
    value: Callable[[Run], Value]
    show: Callable[[float, Value], str]
    """(mean, spread or None) → text."""
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
    task: str = ""
    """Whose metric it is; empty: not that of one task."""
    error: Callable[[Row], Value] | None = None
    """Standard error over the choice of test rows; None: the column has none."""
    gaps: Callable[[list[Row]], list[Gap | None]] | None = None
    """How far every row is from the best; None: the column does not tell."""

    @property
    def short(self) -> str:
        """The title without the task."""
        return self.title.removeprefix(f"{self.task} ")

    @property
    def head(self) -> str:
        """The title in a spreadsheet."""
        return self.plain or self.title


@dataclass(frozen=True)
class Cell:
    """A number of the table."""

    mean: Value
    deviation: Value = None
    """Over seeds."""
    error: Value = None
    """Over the choice of test rows."""
    text: str = NOTHING
    """The mean ± its deviation, or of a single run ± its error."""
    best: bool = False
    gap: Gap | None = None

    @property
    def equal(self) -> bool:
        """Whether the test rows cannot tell it from the best."""
        return self.gap is not None and self.gap.is_open and not self.best


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
    rows: int
    """Rows of the test split; 0: unknown."""
    positives: dict[str, int]
    """Of the test split, by binary task; no entry where it is unknown."""
    labelled: dict[str, int]
    """Rows of the test split that have a label of a task, for tasks that not all rows have one of."""

    def differences(self) -> dict[str, list[tuple[Line, Cell]]]:
        """The lines whose distance to the best is known, with their AUC, by task; of tasks that have two and more."""
        found: dict[str, list[tuple[Line, Cell]]] = {}
        for number, column in enumerate(self.columns):
            cells = [(line, line.cells[number]) for line in self.lines if line.cells[number].gap is not None]
            if column.gaps is not None and len(cells) > 1:
                found[column.task] = cells
        return found


def tabulate(rows: list[Row]) -> Table:
    """The table of rows on one dataset."""
    runs = [run for row in rows for run in row.runs]
    columns = [column for column in _columns(rows, runs) if not column.optional or _known(column.value, runs)]
    cells = [_cells(column, rows) for column in columns]
    lines = [Line(row.label, row.name, len(row.runs), [column[i] for column in cells]) for i, row in enumerate(rows)]
    positives = {task: _known(metric(task, "positives"), runs) for task in tasks(rows)}
    known = {task: int(counts[0]) for task, counts in positives.items() if counts}
    test_rows = max(run.test_rows for run in runs)
    counts = {task: int(max(_known(metric(task, "rows"), runs), default=test_rows)) for task in tasks(rows)}
    labelled = {task: count for task, count in counts.items() if count < test_rows}
    return Table(columns, [*_reference_lines(columns), *lines], test_rows, known, labelled)


def notes(table: Table) -> list[str]:
    """What ± and ≈ say in this table, a sentence each."""
    cells = [(line, cell) for line in table.lines for cell in line.cells]
    found = []
    if any(line.runs == 1 and cell.error is not None for line, cell in cells):
        found.append(
            "± of a single run is the standard error: how far the number would move with other test rows "
            "(jackknife over users, or over rows where the data has fewer than 100 users)."
        )
    if any(cell.deviation is not None for _, cell in cells):
        found.append("± of several runs is the standard deviation over their seeds.")
    if any(column.title == "log loss" for column in table.columns) and any(c.short == "MAE" for c in table.columns):
        found.append("The log loss without a task's name is summed over the binary tasks.")
    if table.differences():
        found.append(
            f"≈ marks an AUC that lies at most {ERRORS} standard errors of the difference below the best: "
            "these test rows cannot tell the two apart."
        )
    return found


def show_gap(cell: Cell) -> str:
    """The difference to the best with its standard error."""
    if cell.gap is None:
        return NOTHING
    mark = " ≈" if cell.equal else ""
    return "best" if cell.best else f"−{show_metric(-cell.gap.difference, cell.gap.error)}{mark}"


def show_counts(table: Table) -> str:
    """How many test rows there are, of what."""
    counts = {"positives": table.positives, "with a label": table.labelled}
    said = [f"{what}: {', '.join(f'{task} {n:,}' for task, n in of.items())}" for what, of in counts.items() if of]
    return "; ".join([f"{table.rows:,} test rows", *said])


def markdown(tables: dict[str, Table]) -> str:
    """A heading, a table, and what it says of the test rows, for each dataset."""
    return "\n\n".join(f"## {dataset}\n\n{_markdown(table)}" for dataset, table in tables.items())


def _markdown(table: Table) -> str:
    lines = [
        ["model", *(column.title for column in table.columns)],
        ["---", *("---:" for _ in table.columns)],
        *([_escape(line.name), *(_marked(cell) for cell in line.cells)] for line in table.lines),
    ]
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
    if table.positives or table.labelled:
        parts.append(f"{_escape(show_counts(table))}.")
    if found := notes(table):
        parts.append(" ".join(found))
    if differences := table.differences():
        items = [
            f"- {_escape(task)}: {', '.join(f'{_escape(line.name)} {show_gap(cell)}' for line, cell in cells)}"
            for task, cells in differences.items()
        ]
        parts += ["AUC less the best, ± standard error of the difference on the same test rows:", "\n".join(items)]
    return "\n\n".join(parts)


def _escape(name: str) -> str:
    return name.replace("|", "\\|")


def csv(tables: dict[str, Table], others: Sequence[RunWithoutResults] = ()) -> str:
    """One table of all datasets in full precision, empty where unknown.

    Every column has its mean and its standard deviation over seeds beside it; the metrics that have one their standard
    error over the choice of test rows; an AUC its difference to the best, and that difference's standard error. Lines
    of `others` have no metrics, but a state and a step.
    """
    heads = dict.fromkeys(
        head for table in tables.values() for column in table.columns for head, _ in _numbers(column, Cell(None))
    )
    out = io.StringIO()
    first = ["dataset", "model", "runs", "state", "step"]
    writer = csv_files.DictWriter(out, [*first, *heads], restval="", lineterminator="\n")
    writer.writeheader()
    for dataset, table in tables.items():
        for line in table.lines:
            pairs = zip(table.columns, line.cells, strict=True)
            numbers = {head: number for column, cell in pairs for head, number in _numbers(column, cell)}
            known = {head: number for head, number in numbers.items() if number is not None}
            writer.writerow({"dataset": dataset, "model": line.name, "runs": line.runs or "", **known})
    for run in others:
        model = f"{run.model} ({run.folder})"
        writer.writerow(dict(zip(first, [run.dataset, model, 1, run.state, run.step], strict=True)))
    return out.getvalue().rstrip("\n")


def _numbers(column: Column, cell: Cell) -> list[tuple[str, Value]]:
    """The numbers of a cell beside their names in a spreadsheet."""
    head, gap = column.head, cell.gap
    numbers = [(head, cell.mean), (f"{head} deviation", cell.deviation)]
    if column.error:
        numbers.append((f"{head} standard error", cell.error))
    if column.gaps:
        numbers.append((f"{head} difference to best", gap.difference if gap else None))
        numbers.append((f"{head} difference to best standard error", gap.error if gap else None))
    return numbers


def _columns(rows: list[Row], runs: list[Run]) -> list[Column]:
    names, binary = tasks(rows), binary_tasks(rows)
    entropies = [value for task in binary if (value := _base_logloss(task, runs)) is not None]
    total_entropy = sum(entropies) if binary and len(entropies) == len(binary) else None
    loss = Column("log loss", total_logloss(binary), show_metric, min, base_rate=total_entropy, headline=True)
    on_device = bool(_known(lambda run: run.device_bytes, runs))
    device = Column("device GB", lambda run: run.device_bytes, show_bytes, min, "device bytes", optional=True)
    host = Column("host GB", lambda run: run.host_bytes, show_bytes, min, "host bytes", optional=True)
    return [
        *(column for task in names for column in (_task_columns if task in binary else _number_columns)(task, runs)),
        *([loss] if binary or not names else []),
        Column("train+val", lambda run: run.train_val_seconds, show_seconds, min, "train+val seconds", headline=True),
        replace(device, headline=on_device),
        replace(host, headline=not on_device),
        Column("examples/s", lambda run: run.examples_per_second, show_count, max, headline=True),
        Column("epochs", lambda run: run.epochs, show_epochs),
    ]


def _task_columns(task: str, runs: list[Run]) -> list[Column]:
    """AUC, grouped AUC and log loss of one task."""
    oracle = next(iter(_known(metric(task, "oracle_auc"), runs)), None)
    area = Column(f"{task} AUC", metric(task, "auc"), show_metric, max, task=task)
    gauc = Column(f"{task} GAUC", metric(task, "gauc"), show_metric, max, task=task, optional=True)
    loss = Column(f"{task} log loss", metric(task, "logloss"), show_metric, min, task=task)
    return [
        replace(
            area,
            oracle=oracle,
            base_rate=0.5,
            headline=True,
            error=partial(auc_error, task=task),
            gaps=partial(gaps, task=task),
        ),
        gauc,
        replace(loss, base_rate=_base_logloss(task, runs), error=partial(single_error, task=task, name="logloss")),
    ]


def _number_columns(task: str, runs: list[Run]) -> list[Column]:
    """MAE, RMSE, R² and XAUC of a task whose labels are numbers; the base rate predicts their mean."""
    mae = Column(f"{task} MAE", metric(task, "mae"), show_amount, min, task=task, headline=True, optional=True)
    rmse = Column(f"{task} RMSE", metric(task, "rmse"), show_amount, min, task=task, optional=True)
    r2 = Column(f"{task} R²", metric(task, "r2"), show_metric, max, task=task, base_rate=0.0, optional=True)
    return [
        replace(mae, error=partial(single_error, task=task, name="mae")),
        replace(rmse, base_rate=_base_rmse(task, runs), error=partial(single_error, task=task, name="rmse")),
        replace(r2, error=partial(single_error, task=task, name="r2")),
        Column(f"{task} XAUC", metric(task, "xauc"), show_metric, max, task=task, base_rate=0.5, optional=True),
    ]


def _base_rmse(task: str, runs: list[Run]) -> Value:
    """Deviation of the labels, as R² tells it: RMSE / √(1 − R²)."""
    found = [(metric(task, "rmse")(run), metric(task, "r2")(run)) for run in runs]
    known = [rmse / math.sqrt(1 - r2) for rmse, r2 in found if rmse is not None and r2 is not None and r2 < 1]
    return known[0] if known else None


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
    distances = column.gaps(rows) if column.gaps else [None] * len(rows)
    return [
        Cell(None) if mean is None else _cell(column, row, mean, mean == best, gap)
        for row, mean, gap in zip(rows, means, distances, strict=True)
    ]


def _cell(column: Column, row: Row, mean: float, best: bool, gap: Gap | None) -> Cell:
    deviation, error = row.deviation(column.value), column.error(row) if column.error else None
    spread = error if len(row.runs) == 1 else deviation
    return Cell(mean, deviation, error, column.show(mean, spread), best, gap)


def _reference_lines(columns: list[Column]) -> list[Line]:
    """The lines of the oracle, where it is known for a task, and of the base rate."""
    lines = {"oracle": [column.oracle for column in columns], "base rate": [column.base_rate for column in columns]}
    return [
        Line(label, label, 0, [_reference(*pair) for pair in zip(columns, values, strict=True)])
        for label, values in lines.items()
        if any(value is not None for value in values)
    ]


def _reference(column: Column, value: Value) -> Cell:
    return Cell(None) if value is None else Cell(value, text=column.show(value, None))


def _marked(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.best else f"{cell.text} ≈" if cell.equal else cell.text
