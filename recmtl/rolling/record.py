"""What a rolling job says of every day: ``OUT/days/DAY.json``, written when the day is done and kept for good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from recmtl.errors import UserError
from recmtl.runtime.storage import list_folder, make_folder, os_errors, read_json, write_json
from recmtl.typed import from_dict

FORMAT = 1
DAYS = "days"
"""Folder of a rolling job's output with a file a day."""
STEPS = ("prepare", "evaluate", "train", "export")
"""Keys of `DayRecord.cost`, in the order in which a day takes them. evaluate: yesterday's model on the day; a first day
has none, and a refused one no export."""

Metrics = dict[str, dict[str, float | None]]
"""Metrics by task and by their names in ``results.json``, with their standard errors (``auc_se``) and counts
(``rows``); None: unknown."""


@dataclass(frozen=True)
class TableCounts:
    """What a day did to an embedding table."""

    rows: int
    """Rows that the table has on that day."""
    new: int
    """Values that got an id that day, on the first day all that have one."""
    retired: int
    """Values that lost their id."""


@dataclass(frozen=True)
class Yesterday:
    """What the model that was in use measured on the day before anything was learned from it."""

    run: str
    """Day of its run."""
    rows: int
    """Rows of the whole day, those for testing among them."""
    metrics: Metrics


@dataclass(frozen=True)
class Gain:
    """How much higher a metric is than that of yesterday's model on the same rows."""

    value: float
    se: float | None
    """Standard error over the choice of rows, of the difference; None: unknown."""


@dataclass(frozen=True)
class Today:
    """What the day's new model measured on the day's test rows, which it has not learned."""

    rows: int
    metrics: Metrics
    yesterday: Metrics
    """Of yesterday's model on the same rows; empty on the first day."""
    auc_gain: dict[str, Gain]
    """By binary task; empty on the first day."""


@dataclass(frozen=True)
class Gate:
    """Whether the day's model took over."""

    accepted: bool
    reasons: tuple[str, ...] = ()
    """A line for each bound that the model missed."""


@dataclass(frozen=True)
class Cost:
    """What a step of a day took, all its processes together."""

    seconds: float
    """By the clock."""
    cpu_seconds: float


@dataclass(frozen=True)
class DayRecord:
    """One day of a rolling job."""

    day: str
    """Its name: that of the folders ``data/DAY``, ``runs/DAY`` and ``exports/DAY``."""
    since: str
    """First moment of the day, as the column of the recipe's split has it. The first day has all rows before it too."""
    until: str
    """First moment after the day."""
    rows: dict[str, int]
    """Number of rows, by split."""
    tables: dict[str, TableCounts]
    """By embedding table."""
    start_from: str | None
    """Day of the run whose model the day's run started from; None: it started from new weights."""
    yesterday: Yesterday | None
    """None on the first day."""
    today: Today | None
    """None: the day has no test rows."""
    gate: Gate
    cost: dict[str, Cost]
    """By step, of `STEPS`."""

    @property
    def order(self) -> float:
        """What days are sorted by, as `order_of` has it."""
        return order_of(self.since)

    def save(self, out: Path) -> None:
        """Write ``OUT/days/DAY.json``, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        path = record_path(out, self.day)
        with os_errors(path):
            make_folder(path.parent)
        write_json(path, {"format": FORMAT, **asdict(self)})

    @staticmethod
    def load(path: Path) -> DayRecord:
        """Read a day's file.

        Raises:
            UserError: it is damaged, or another version of recmtl wrote it.
        """
        try:
            with os_errors(path):
                values: dict[str, Any] = read_json(path)
            if values.pop("format") != FORMAT:
                raise UserError(f"{path}: written by another version of recmtl; read it with that one")
            record = from_dict(DayRecord, values, str(path))
            record.order  # noqa: B018  # a moment that is none would be found where days are sorted
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: damaged ({error!r}); `recmtl roll --redo-from {path.stem}` makes it anew"
            ) from None
        return record


def order_of(text: str) -> float:
    """What moments and names of days are sorted by: seconds since 1970, or the number that they are.

    Raises:
        ValueError: the text is no moment.
    """
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def record_path(out: Path, day: str) -> Path:
    """Where a rolling job's folder has the record of a day."""
    return out / DAYS / f"{day}.json"


def load_records(out: Path, before: float = math.inf) -> list[DayRecord]:
    """The records of the days that are done in a rolling job's folder, in their order.

    Args:
        out: the folder.
        before: leave out days from this moment on, as `order_of` has it.

    Raises:
        UserError: one is damaged.
    """
    with os_errors(out):
        paths = list_folder(out / DAYS, "*.json")
    records = [DayRecord.load(path) for path in paths if math.isinf(before) or order_of(path.stem) < before]
    return sorted(records, key=lambda record: record.order)


def numbers(metrics: Mapping[str, Mapping[str, Any]]) -> Metrics:
    """The metrics of ``results.json`` as a record keeps them: what is no single number is left out.

    Args:
        metrics: by task and name.
    """
    return {
        task: {name: _number(value) for name, value in values.items() if not isinstance(value, list | dict | str)}
        for task, values in metrics.items()
    }


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
