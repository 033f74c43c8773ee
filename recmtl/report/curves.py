"""Training curves: loss and AUC over the steps."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from recmtl.report.figures import color, dashes, marker, svg
from recmtl.report.rows import Row
from recmtl.report.runs import Run, is_number

POINTS = 80
"""Points of a curve at most; between them it is averaged."""


def curve_plots(rows: list[Row], task: str) -> dict[str, str]:
    """Training loss, validation loss and validation AUC of a task over the steps, by title; of runs that logged.

    Of a task whose labels are numbers the MAE stands in place of the AUC.
    """
    number = is_number(task, [run for row in rows for run in row.runs])
    wanted = {
        f"{task}: training loss": f"loss/{task}",
        f"{task}: validation loss": f"val/{task}/{'loss' if number else 'logloss'}",
        f"{task}: validation {'MAE' if number else 'AUC'}": f"val/{task}/{'mae' if number else 'auc'}",
    }
    plots = {}
    for title, key in wanted.items():
        curves = [
            (series, steps, values)
            for series, row in enumerate(rows)
            for run in row.runs
            for steps, values in [curve(run, key)]
            if len(steps)
        ]
        if curves:
            plots[title] = svg(partial(_draw_curves, curves=curves), title)
    return plots


def curve(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of what a run logged under a key, thinned out."""
    known = [(line["step"], line[key]) for line in run.history if isinstance(line.get(key), int | float)]
    pairs = np.array(known, dtype=float).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    parts = np.array_split(pairs, min(len(pairs), POINTS)) if len(pairs) else []
    means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _draw_curves(axes: Axes, curves: list[tuple[int, np.ndarray, np.ndarray]]) -> None:
    few = max(len(steps) for _, steps, _ in curves) <= 30
    for series, steps, values in curves:
        axes.plot(
            steps,
            values,
            color=color(series),
            linestyle=dashes(series),
            linewidth=1.3,
            alpha=0.9,
            marker=marker(series) if few else None,
            markersize=4,
        )
    every = np.concatenate([values for _, _, values in curves])
    # The first steps are far off and would flatten the rest.
    low, high = every.min(), every.max() if few else np.quantile(every, 0.95)
    margin = 0.06 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("steps")
