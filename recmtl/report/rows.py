"""Runs by row of the table: those that differ in nothing but their seed belong together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from recmtl.report.runs import Run, Value, is_number

LABEL_LETTERS = 40
"""Settings that take more are not for a label."""
SHOWN_DIGITS = 8
"""Of a fingerprint, in headings and labels."""


@dataclass(frozen=True)
class Row:
    """The runs of one row."""

    name: str
    """The model, and the run folders where that is ambiguous."""
    label: str
    """The same for people: the model, and what sets this row apart from others of it."""
    runs: list[Run] = field(repr=False)

    def mean(self, value: Callable[[Run], Value]) -> Value:
        """Mean over the runs that have a value."""
        known = self.known(value)
        return statistics.fmean(known) if known else None

    def deviation(self, value: Callable[[Run], Value]) -> Value:
        """Standard deviation of a sample, of two runs or more."""
        known = self.known(value)
        return statistics.stdev(known) if len(known) > 1 else None

    def known(self, value: Callable[[Run], Value]) -> list[float]:
        """The values of the runs that have one."""
        return [known for run in self.runs if (known := value(run)) is not None]


def by_dataset(runs: list[Run]) -> dict[str, list[Row]]:
    """The rows of every dataset by its heading, datasets by name, rows in the order of the runs.

    Runs on data of one name but of another fingerprint do not compare: they are of another dataset, and the first
    digits of the fingerprint tell the headings apart.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.dataset):
        groups.setdefault((run.dataset, run.data_fingerprint), []).append(run)
    namesakes: dict[str, list[str]] = {}
    for name, fingerprint in groups:
        namesakes.setdefault(name, []).append(fingerprint)
    return {_heading(*key, namesakes[key[0]]): _rows(group) for key, group in groups.items()}


def _heading(name: str, fingerprint: str, namesakes: list[str]) -> str:
    """The name, with as many digits of the fingerprint as tell it apart, from 8 up, where others have the name."""
    if len(namesakes) == 1:
        return name
    digits = SHOWN_DIGITS
    while len({other[:digits] for other in namesakes}) < len(namesakes):
        digits += 1
    return f"{name} ({fingerprint[:digits]})"


def tasks(rows: list[Row]) -> list[str]:
    """The tasks of all runs."""
    return list(dict.fromkeys(task for row in rows for run in row.runs for task in run.test))


def binary_tasks(rows: list[Row]) -> list[str]:
    """The tasks of all runs whose labels are 0 and 1."""
    runs = [run for row in rows for run in row.runs]
    return [task for task in tasks(rows) if not is_number(task, runs)]


def _rows(runs: list[Run]) -> list[Row]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run.model, _setting(run)], sort_keys=True, default=str), []).append(run)
    rows = []
    for group in groups.values():
        repeated = len({run.seed for run in group}) == len(group)
        rows += [group] if repeated else [[run] for run in group]
    models = [row[0].model for row in rows]
    names = [
        model if models.count(model) == 1 else f"{model} ({', '.join(str(run.folder) for run in row)})"
        for model, row in zip(models, rows, strict=True)
    ]
    labels = [_label(row, [other for other in rows if other[0].model == row[0].model]) for row in rows]
    return [
        Row(name, label if labels.count(label) == 1 else name, row)
        for name, label, row in zip(names, labels, rows, strict=True)
    ]


def _setting(run: Run) -> dict[str, Any]:
    """Everything that must be the same for runs to be repetitions: the seed alone may differ.

    Runs that start from others are repetitions where those are: the data that they were trained on tell.
    """
    sections = {name: keys for name, keys in run.config.items() if isinstance(keys, dict)}
    flat = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    flat.pop("training.seed", None)
    start = run.start_from[:SHOWN_DIGITS] or "none"
    return {"ranks": run.world_size, "device": run.device, "start_from": start, **flat}


def _label(row: list[Run], namesakes: list[list[Run]]) -> str:
    """The model and the settings that are not the same in all rows of it; the folder's name where they don't do."""
    if len(namesakes) == 1:
        return row[0].model
    settings = [_setting(other[0]) for other in namesakes]
    mine = _setting(row[0])
    differing = [key for key in mine if any(other.get(key) != mine[key] for other in settings)]
    apart = ", ".join(f"{_short(key, mine)} {_shown(mine[key])}" for key in differing)
    unique = settings.count(mine) == 1
    return f"{row[0].model} ({apart if apart and unique and len(apart) <= LABEL_LETTERS else row[0].folder.name})"


def _short(key: str, keys: Iterable[str]) -> str:
    """A key without its section, unless another key ends the same way: ``experts``, but ``dense.lr``."""
    last = key.split(".")[-1]
    return last if sum(other.split(".")[-1] == last for other in keys) == 1 else key


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
