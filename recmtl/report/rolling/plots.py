"""Plots over the days of a rolling job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from recmtl.report.figures import INK, color, marker, svg
from recmtl.report.numbers import time_unit
from recmtl.report.rolling.table import Measured, after, before, before_on_test, ids
from recmtl.rolling.record import STEPS, DayRecord, Metrics
from recmtl.schema import SPLITS

SERIES: tuple[tuple[str, Callable[[DayRecord], Metrics]], ...] = (
    ("yesterday's model, all rows of the day", before),
    ("the day's model, test rows", after),
    ("yesterday's model, test rows", before_on_test),
)
"""Of the plots of metrics."""
DAYS_NAMED = 5
"""Days whose names fit below a plot."""
YEAR = len("2023-")
APART = 0.12
"""Points of one day stand so far apart, as a share of the least time between two days."""


@dataclass(frozen=True)
class Point:
    """A metric on a day."""

    place: float
    value: float
    error: float
    refused: bool


def metric_plots(records: Sequence[DayRecord], followed: Sequence[Measured]) -> dict[str, str]:
    """The metric of every task by day, with standard errors, by title; days that were refused have hollow points."""
    plots = {}
    for one in followed:
        points: dict[int, list[Point]] = {}
        for series, (_, metrics) in enumerate(SERIES):
            for place, record in zip(_places(records), records, strict=True):
                if (found := one.value(metrics(record))) is not None:
                    value, error = found
                    refused = metrics is after and not record.gate.accepted
                    points.setdefault(series, []).append(Point(place, value, error or 0.0, refused))
        if points:
            plots[one.title] = svg(partial(_draw_metric, records=records, points=points), f"{one.title} by day")
    return plots


def count_plots(records: Sequence[DayRecord]) -> dict[str, str]:
    """Rows by split, and ids of all tables that are new and retired, by title."""
    rows = {split: [float(record.rows.get(split, 0)) for record in records] for split in SPLITS}
    plots = {"Rows": svg(partial(_draw_bars, records=records, parts=rows), "rows by day and split")}
    later = [record for record in records if record.yesterday is not None]
    if later:
        new, retired = zip(*map(ids, later), strict=True)
        parts = {"new": [float(count) for count in new], "retired": [-float(count) for count in retired]}
        plots["New and retired ids"] = svg(
            partial(_draw_bars, records=later, parts=parts), "new and retired ids by day"
        )
    return plots


def cost_plots(records: Sequence[DayRecord]) -> dict[str, str]:
    """Time and CPU time of every step by day, by title."""
    plots = {}
    for title, value in (("Time", "seconds"), ("CPU time", "cpu_seconds")):
        seconds = {
            step: [getattr(record.cost[step], value) if step in record.cost else 0.0 for record in records]
            for step in STEPS
        }
        size, unit = time_unit(max(map(sum, zip(*seconds.values(), strict=True))))
        parts = {step: [number / size for number in numbers] for step, numbers in seconds.items()}
        plots[title] = svg(partial(_draw_bars, records=records, parts=parts, label=unit), f"{title} by day and step")
    return plots


def _places(records: Sequence[DayRecord]) -> np.ndarray:
    """Where days stand: by time, so that days without rows leave a gap; the least time between two days is 1."""
    orders = np.array([record.order for record in records])
    least = np.diff(orders).min() if len(orders) > 1 else 1.0
    return (orders - orders[0]) / (least or 1.0)


def _draw_metric(axes: Axes, records: Sequence[DayRecord], points: dict[int, list[Point]]) -> None:
    for series, found in points.items():
        places = [point.place + (series - 1) * APART for point in found]
        axes.plot(places, [point.value for point in found], color=color(series), linewidth=1.2, zorder=2)
        for place, point in zip(places, found, strict=True):
            axes.errorbar(
                place,
                point.value,
                yerr=point.error,
                fmt=marker(series),
                markersize=5,
                color=color(series),
                markerfacecolor="none" if point.refused else color(series),
                elinewidth=1,
                zorder=3,
            )
    _name_days(axes, records)


def _draw_bars(axes: Axes, records: Sequence[DayRecord], parts: dict[str, list[float]], label: str = "") -> None:
    """Parts of a day on top of each other; those below zero hang from it."""
    places = _places(records)
    above, below = np.zeros(len(records)), np.zeros(len(records))
    for series, numbers in enumerate(parts.values()):
        sizes = np.array(numbers)
        axes.bar(places, sizes, 0.8, np.where(sizes < 0, below, above), color=color(series), linewidth=0)
        above += np.maximum(sizes, 0)
        below += np.minimum(sizes, 0)
    if below.any():
        axes.axhline(0, color=INK, linewidth=0.7)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(abs(value))))
    axes.set_ylabel(label)
    _name_days(axes, records)


def _short(number: float) -> str:
    """12k, 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def _name_days(axes: Axes, records: Sequence[DayRecord]) -> None:
    """Names below some of the days, without the year where they are dates of one."""
    names, places = [record.day for record in records], _places(records)
    years = {name[:YEAR] for name in names}
    cut = YEAR if len(names) > 1 and len(years) == 1 and names[0][YEAR - 1 : YEAR] == "-" else 0
    some = np.unique(np.linspace(0, len(names) - 1, min(DAYS_NAMED, len(names))).round().astype(int))
    axes.set_xticks(places[some], [names[place][cut:] for place in some])
    axes.set_xlim(-0.7, places[-1] + 0.7)
    if cut:
        axes.set_xlabel(names[0][: cut - 1])
