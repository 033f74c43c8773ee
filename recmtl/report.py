"""``recmtl report``: the results of several runs as one Markdown table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from recmtl.errors import UserError

RESULTS = "results.json"
REPORT = "report.md"
NOTHING = "–"
GB = 1e9

Value = float | None
TaskMetrics = dict[str, Value]


@dataclass(frozen=True)
class Run:
    """What ``results.json`` of one run says."""

    folder: Path
    model: str
    dataset: str
    setting: tuple[int, str]
    """World size and device: runs are repetitions of each other only where these agree."""
    seed: int
    epochs: Value
    test: dict[str, TaskMetrics]
    logloss_sum: Value
    train_val_seconds: Value
    examples_per_second: Value
    device_bytes: Value
    host_bytes: Value

    def metric(self, task: str, name: str) -> Value:
        """A metric of the test split; None where the run has no such task or the metric is unknown."""
        return self.test.get(task, {}).get(name)

    @staticmethod
    def load(folder: Path) -> Run:
        """Read ``results.json`` from a run folder.

        Raises:
            UserError: it is missing or damaged.
        """
        path = folder / RESULTS
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            return Run(
                folder=folder,
                model=str(fields["model"]),
                dataset=str(fields["dataset"]),
                setting=(int(fields["world_size"]), str(fields["device"])),
                seed=int(fields["seed"]),
                epochs=_number(fields["epochs"]),
                test={task: _task_metrics(metrics) for task, metrics in fields["test"].items()},
                logloss_sum=_number(fields["logloss_sum"]),
                train_val_seconds=_number(fields["train_val_seconds"]),
                examples_per_second=_number(fields["examples_per_second"]),
                device_bytes=_number(fields["peak_memory_bytes"]["device"]),
                host_bytes=_number(fields["peak_memory_bytes"]["host"]),
            )
        except OSError as problem:
            raise UserError(f"{path}: cannot be read ({problem.strerror}); name folders of finished runs") from None
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UserError(f"{path}: damaged ({problem!r}); train or evaluate again") from None


@dataclass(frozen=True)
class Column:
    """A column of the table: where its numbers come from and how they are shown."""

    title: str
    value: Callable[[Run], Value]
    show: Callable[[float, float | None], str]
    """(mean, deviation or None) → text."""
    best: Callable[[Iterable[float]], float] | None = None
    """max, min, or None where no value is better than another."""
    oracle: Value = None
    base_rate: Value = None
    optional: bool = False
    """Left out where no run has a value."""


def report(runs: list[Path], out: Path) -> str:
    """Write ``OUT/report.md`` and return its text: a table for each dataset.

    The first rows are the oracle, where the true probabilities are known, and the base rate: AUC 0.5 and, for a task
    with the fraction p of positive labels, log loss −p·ln p − (1 − p)·ln(1 − p). Then one row a model. Runs that
    differ only in their seed share a row: mean ± standard deviation (of a sample, n − 1). Bold is best.

    Args:
        runs: folders of finished runs.
        out: folder for the report; made if it is not there.

    Raises:
        UserError: no runs, or a run's ``results.json`` is missing or damaged.
    """
    if not runs:
        raise UserError("no runs to report; name at least one run folder")
    loaded = sorted((Run.load(folder) for folder in dict.fromkeys(runs)), key=lambda run: run.dataset)
    tables = {dataset: _table(list(group)) for dataset, group in groupby(loaded, key=lambda run: run.dataset)}
    text = "\n\n".join(f"## {dataset}\n\n{table}" for dataset, table in tables.items())
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / REPORT).write_text(text + "\n")
    except OSError as problem:
        raise UserError(f"{out / REPORT}: cannot be written ({problem.strerror})") from None
    return text


def entropy(rate: float) -> float:
    """Log loss, in nats, of predicting the base rate for every example."""
    return -sum(p * math.log(p) for p in (rate, 1 - rate) if p > 0)


def _table(runs: list[Run]) -> str:
    """The Markdown table of runs on one dataset."""
    rows = _repetitions(runs)
    columns = [column for column in _columns(runs) if not column.optional or _known(column.value, runs) is not None]
    cells = [_column_cells(column, list(rows.values())) for column in columns]
    lines = [
        ["model", *(column.title for column in columns)],
        ["---", *("---:" for _ in columns)],
        *_reference_rows(columns),
        *([_escape(label), *texts] for label, texts in zip(rows, zip(*cells, strict=True), strict=True)),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(runs: list[Run]) -> list[Column]:
    tasks = list(dict.fromkeys(task for run in runs for task in run.test))
    entropies = [value for task in tasks if (value := _base_logloss(task, runs)) is not None]

    def total(run: Run) -> Value:
        """The sum of a run that lacks a task is another quantity."""
        return run.logloss_sum if all(task in run.test for task in tasks) else None

    return [
        *(column for task in tasks for column in _task_columns(task, runs)),
        Column(
            "log loss", total, _show_metric, min, base_rate=sum(entropies) if len(entropies) == len(tasks) else None
        ),
        Column("train+val", lambda run: run.train_val_seconds, _show_seconds, min),
        Column("device GB", lambda run: run.device_bytes, _show_bytes, min, optional=True),
        Column("host GB", lambda run: run.host_bytes, _show_bytes, min, optional=True),
        Column("examples/s", lambda run: run.examples_per_second, _show_count, max),
        Column("epochs", lambda run: run.epochs, _show_epochs),
    ]


def _task_columns(task: str, runs: list[Run]) -> list[Column]:
    """AUC, grouped AUC and log loss of one task."""

    def metric(name: str) -> Callable[[Run], Value]:
        return lambda run: run.metric(task, name)

    oracle = _known(metric("oracle_auc"), runs)
    return [
        Column(f"{task} AUC", metric("auc"), _show_metric, max, oracle=oracle, base_rate=0.5),
        Column(f"{task} GAUC", metric("gauc"), _show_metric, max, optional=True),
        Column(f"{task} log loss", metric("logloss"), _show_metric, min, base_rate=_base_logloss(task, runs)),
    ]


def _base_logloss(task: str, runs: list[Run]) -> Value:
    rate = _known(lambda run: run.metric(task, "base_rate"), runs)
    return None if rate is None else entropy(rate)


def _known(value: Callable[[Run], Value], runs: list[Run]) -> Value:
    """The value of the first run that has one."""
    return next((known for run in runs if (known := value(run)) is not None), None)


def _repetitions(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by row: those that differ only in seed together, under the model's name where that is unambiguous."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.model, run.setting), []).append(run)
    rows = []
    for group in groups.values():
        repeated = len({run.seed for run in group}) == len(group)
        rows += [group] if repeated else [[run] for run in group]
    models = [row[0].model for row in rows]
    return {row[0].model if models.count(row[0].model) == 1 else _long_label(row): row for row in rows}


def _long_label(row: list[Run]) -> str:
    return f"{row[0].model} ({', '.join(str(run.folder) for run in row)})"


def _column_cells(column: Column, rows: list[list[Run]]) -> list[str]:
    """The texts of one column, the best in bold where there is something to compare."""
    values = [[value for run in row if (value := column.value(run)) is not None] for row in rows]
    means = [statistics.fmean(row) if row else None for row in values]
    known = [mean for mean in means if mean is not None]
    best = column.best(known) if column.best and len(known) > 1 else None
    return [
        NOTHING if mean is None else _bold(column.show(mean, _deviation(row)), mean == best)
        for mean, row in zip(means, values, strict=True)
    ]


def _reference_rows(columns: list[Column]) -> list[list[str]]:
    """The rows of the oracle, where it is known for a task, and of the base rate."""
    rows = {"oracle": [column.oracle for column in columns], "base rate": [column.base_rate for column in columns]}
    return [
        [label, *(NOTHING if value is None else _show_metric(value, None) for value in values)]
        for label, values in rows.items()
        if any(value is not None for value in values)
    ]


def _task_metrics(metrics: dict[str, Any]) -> TaskMetrics:
    return {name: _number(value) for name, value in metrics.items()}


def _number(value: Any) -> Value:
    """A finite number; null, NaN and infinities are unknown."""
    return float(value) if value is not None and math.isfinite(value) else None


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _show(mean: float, deviation: float | None, form: str, unit: str = "") -> str:
    spread = "" if deviation is None else f" ± {deviation:{form}}"
    return f"{mean:{form}}{spread}{unit}"


def _show_metric(mean: float, deviation: float | None) -> str:
    return _show(mean, deviation, ".4f")


def _show_seconds(mean: float, deviation: float | None) -> str:
    """In hours, minutes or seconds, whichever gives a number from 1 up."""
    size, unit = next(((size, unit) for size, unit in ((3600, "h"), (60, "min")) if mean >= size), (1, "s"))
    return _show(mean / size, None if deviation is None else deviation / size, ".1f", f" {unit}")


def _show_bytes(mean: float, deviation: float | None) -> str:
    return _show(mean / GB, None if deviation is None else deviation / GB, ".2f")


def _show_count(mean: float, deviation: float | None) -> str:
    return _show(mean, deviation, ",.0f")


def _show_epochs(mean: float, deviation: float | None) -> str:
    return _show(mean, deviation, ".0f" if deviation is None else ".1f")
