"""AUC, MAE and log loss against time and memory, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from recmtl.report.confidence import auc_error, single_error
from recmtl.report.figures import INK, MUTED, color, marker, plain_ticks, svg
from recmtl.report.numbers import GB, time_unit
from recmtl.report.rows import Row, binary_tasks, tasks
from recmtl.report.runs import Run, Value, metric, total_logloss

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in typographic points."""
LETTER, LINE = 4.6, 9.0
"""Width of a letter and height of a line of a label, in typographic points."""
SIDES = (
    *(("left", 7, 0), ("right", -7, 0), ("center", 0, 10), ("center", 0, -11)),
    *(("left", 7, 9), ("left", 7, -9), ("right", -7, 9), ("right", -7, -9)),
)
"""Where a label may stand: its edge that lies at the point, and how far off."""


@dataclass(frozen=True)
class Point:
    """Where a row lies."""

    series: int
    label: str
    cost: float
    """Lower is better."""
    quality: float
    """Higher is better, or lower (MAE, log loss)."""
    cost_deviation: Value
    """Over seeds."""
    quality_spread: Value
    """Standard deviation over seeds; of a single run its standard error."""


def cost_plots(rows: list[Row]) -> dict[str, str]:
    """AUC or MAE of every task, and log loss, against time and against memory, by title; of rows that have both."""
    seconds = [s for row in rows if (s := row.mean(lambda run: run.train_val_seconds)) is not None]
    size, unit = time_unit(max(seconds, default=1.0))
    on_device = any(run.device_bytes is not None for row in rows for run in row.runs)
    costs: dict[str, tuple[str, Callable[[Run], Value]]] = {
        "time": (f"training and validation, {unit}", lambda run: _over(run.train_val_seconds, size)),
        "memory": (
            f"peak memory of a rank ({'device' if on_device else 'host'}), GB",
            lambda run: _over(run.device_bytes if on_device else run.host_bytes, GB),
        ),
    }
    binary = binary_tasks(rows)
    numbers = [task for task in tasks(rows) if task not in binary]
    qualities: dict[str, tuple[bool, Callable[[Run], Value], Callable[[Row], Value]]] = {
        **{f"{task} AUC": (True, metric(task, "auc"), partial(auc_error, task=task)) for task in binary},
        **{
            f"{task} MAE": (False, metric(task, "mae"), partial(single_error, task=task, name="mae"))
            for task in numbers
        },
        "log loss": (False, total_logloss(binary), lambda row: None),
    }
    plots = {}
    for cost_name, (label, cost) in costs.items():
        for quality_name, (higher, quality, error) in qualities.items():
            points = _points(rows, cost, quality, error)
            if len(points) > 1:
                title = f"{quality_name} against {cost_name}"
                plots[title] = svg(partial(_draw_costs, points=points, higher=higher, xlabel=label), title)
    return plots


def pareto(points: Sequence[Point], higher: bool) -> list[Point]:
    """The points that no other beats in one thing and equals in the other, by cost.

    Args:
        points: all of them.
        higher: a higher quality is better, not a lower one.
    """
    sign = 1 if higher else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -sign * p.quality)):
        if not front or sign * point.quality > sign * front[-1].quality:
            front.append(point)
    return front


def _points(
    rows: list[Row], cost: Callable[[Run], Value], quality: Callable[[Run], Value], error: Callable[[Row], Value]
) -> list[Point]:
    points = []
    for series, row in enumerate(rows):
        x, y = row.mean(cost), row.mean(quality)
        if x is not None and y is not None:
            spread = error(row) if len(row.runs) == 1 else row.deviation(quality)
            points.append(Point(series, row.label, x, y, row.deviation(cost), spread))
    return points


def _over(value: Value, size: float) -> Value:
    return None if value is None else value / size


def _draw_costs(axes: Axes, points: list[Point], higher: bool, xlabel: str) -> None:
    front = pareto(points, higher)
    costs = [point.cost for point in points]
    if max(costs) > 10 * min(costs) > 0:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, prune="upper"))  # the last would be cut off
    axes.step([p.cost for p in front], [p.quality for p in front], where="post", color=MUTED, linewidth=1, zorder=1)
    for point in points:
        filled = point in front
        axes.errorbar(
            point.cost,
            point.quality,
            xerr=point.cost_deviation,
            yerr=point.quality_spread,
            fmt=marker(point.series),
            markersize=7,
            color=color(point.series),
            markerfacecolor=color(point.series) if filled else "none",
            markeredgewidth=1.4,
            elinewidth=1,
            zorder=3 if filled else 2,
        )
    axes.margins(x=0.18, y=0.16)
    axes.set_xlabel(xlabel)
    plain_ticks(axes)
    _label(axes, [*front, *(point for point in points if point not in front)], front)


def _label(axes: Axes, points: list[Point], front: list[Point]) -> None:
    """Names beside their points where there is room, the first before the others."""
    axes.autoscale_view()
    taken = _drawn(axes, points, front)
    low, high = (_place(axes, x, points[0].quality)[0] for x in axes.get_xlim())
    for point in points:
        x, y = _place(axes, point.cost, point.quality)
        width = LETTER * len(point.label)
        for align, dx, dy in SIDES:
            left = x + dx - {"left": 0, "center": width / 2, "right": width}[align]
            box = (left, y + dy - LINE / 2, left + width, y + dy + LINE / 2)
            if low <= left and left + width <= high and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                text: dict[str, Any] = {"ha": align, "va": "center", "fontsize": 8.5, "color": INK}
                axes.annotate(point.label, (point.cost, point.quality), (dx, dy), textcoords="offset points", **text)
                break


def _drawn(axes: Axes, points: list[Point], front: list[Point]) -> list[Box]:
    """Boxes around the points, their bars and the front's steps."""
    boxes = []
    for point in points:
        x, y = _place(axes, point.cost, point.quality)
        right, top = _place(axes, point.cost + (point.cost_deviation or 0), point.quality + (point.quality_spread or 0))
        boxes += [(x - 5, y - 5, x + 5, y + 5), (2 * x - right, y - 1, right, y + 1), (x - 1, 2 * y - top, x + 1, top)]
    corners = [_place(axes, point.cost, point.quality) for point in front]
    for (x, y), (next_x, next_y) in pairwise(corners):
        boxes += [(x, y - 1, next_x, y + 1), (next_x - 1, min(y, next_y), next_x + 1, max(y, next_y))]
    return boxes


def _place(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Where a point of the data lies in the figure, in typographic points."""
    right, up = axes.transData.transform((x, y))
    return right, up


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
