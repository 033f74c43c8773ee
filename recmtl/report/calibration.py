"""Calibration plots: what came true of predictions."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from recmtl.report.figures import GRID, MUTED, color, dashes, marker, plain_ticks, svg
from recmtl.report.rows import Row
from recmtl.report.runs import Bins, is_number


def calibration_plots(rows: list[Row], task: str) -> dict[str, str]:
    """Mean label against mean prediction in every bin, by title; of runs that have bins.

    Of a binary task the mean label is the fraction of positives.
    """
    by_row = [[run.bins[task] for run in row.runs if task in run.bins] for row in rows]
    found = [(series, averaged(runs)) for series, runs in enumerate(by_row)]
    curves = [(series, bins) for series, bins in found if bins is not None]
    if not curves:
        return {}
    title = f"{task}: calibration"
    binary = not is_number(task, [run for row in rows for run in row.runs])
    return {title: svg(partial(_draw_calibration, curves=curves, binary=binary), title)}


def averaged(runs: list[Bins]) -> Bins | None:
    """The mean of the bins of several runs, bin by bin; of the first run alone where their numbers differ."""
    if not runs:
        return None
    runs = [bins for bins in runs if len(bins.rows) == len(runs[0].rows)]
    if not runs[0].rows:
        return None
    rows = np.mean([bins.rows for bins in runs], axis=0)
    predicted = np.mean([np.multiply(bins.rows, bins.prediction) for bins in runs], axis=0)
    labelled = np.mean([np.multiply(bins.rows, bins.label) for bins in runs], axis=0)
    return Bins(rows.tolist(), (predicted / rows).tolist(), (labelled / rows).tolist())


def _draw_calibration(axes: Axes, curves: list[tuple[int, Bins]], binary: bool) -> None:
    predictions = np.concatenate([bins.prediction for _, bins in curves])
    observed = np.concatenate([bins.label for _, bins in curves])
    highest, lowest = (1, 0) if binary else (math.inf, -math.inf)
    logarithmic = observed.any() and predictions.max() > 30 * predictions.min() > 0
    drawn = observed > 0 if logarithmic else np.full(len(observed), True)
    low = min(predictions[drawn].min(), observed[drawn].min())
    high = max(predictions[drawn].max(), observed[drawn].max())
    if logarithmic:
        low, high = low / 1.3, min(high * 1.3, highest)
        axes.set_xscale("log")
        axes.set_yscale("log")
        line = np.geomspace(low, high, 100)
    else:
        margin = 0.05 * (high - low) or 0.05
        low, high = max(low - margin, lowest), min(high + margin, highest)
        line = np.linspace(low, high, 100)
    if binary:  # how far other labels lie apart is not known
        rows = min(float(np.median(bins.rows)) for _, bins in curves)
        spread = 2 * np.sqrt(line * (1 - line) / rows)
        below, above = np.clip(line - spread, low, high), np.clip(line + spread, low, high)
        axes.fill_between(line, below, above, color=GRID, linewidth=0)
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1)
    for series, bins in curves:
        label = np.array(bins.label)
        axes.plot(
            bins.prediction,
            np.where(label > 0, label, math.nan) if logarithmic else label,
            color=color(series),
            linestyle=dashes(series),
            linewidth=1.1,
            marker=marker(series),
            markersize=4,
            clip_on=False,
        )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_box_aspect(0.75)
    axes.set_xlabel("mean prediction")
    axes.set_ylabel("fraction of positives" if binary else "mean label")
    plain_ticks(axes)
