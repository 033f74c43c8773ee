"""The metrics of one task whose labels are numbers, on all its rows."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from recmtl.metrics.jackknife import FOLDS, standard_error
from recmtl.metrics.measure import BINS, Bins, Values
from recmtl.metrics.names import ALL
from recmtl.metrics.sums import chunks, mass_of, means_without, numbers, quantiles, times
from recmtl.metrics.xauc import xauc


def measure_numbers(
    predictions: np.ndarray,
    labels: np.ndarray,
    losses: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    include: Collection[str] = ALL,
) -> tuple[Values, Bins]:
    """The metrics of a regression or duration task on the rows that have a label. With weights every mean is weighted.

    With the error e = prediction − label:

    - loss: mean of what training minimises.
    - mae: mean of |e|. rmse: root of the mean of e². Both in the label's unit.
    - r2: 1 − Σ e² / Σ (label − mean label)²; null where all labels are equal.
    - mae_se, rmse_se, r2_se: their standard errors (`recmtl.metrics.jackknife`); of sums by fold they cost nothing. The
      others have none: XAUC would have to be counted for every fold.
    - xauc: probability that two rows with different labels are ordered alike by the prediction (`recmtl.metrics.xauc`).
    - bias: mean prediction over mean label; null where the latter is 0.
    - mean_label: in its unit. rows: rows measured, a count whatever the weights.

    Args:
        predictions: float32 [n], in the label's unit.
        labels: float32 [n].
        losses: of the rows, as training has them, float32 [n].
        folds: fold of every row, uint8 [n]; None: no standard errors.
        weights: of the rows, above 0 [n]; None: all 1.
        include: names of the metrics to measure; the others are null, loss excepted.

    Returns:
        The metrics, all null and rows 0 where there are no rows; and the calibration bins, cut at quantiles of the
        predictions: equal ones share a bin.
    """
    rows = len(labels)
    if not rows:
        names = ("loss", "mae", "mae_se", "rmse", "rmse_se", "r2", "r2_se", "xauc", "bias", "mean_label")
        return {**dict.fromkeys(names), "rows": 0}, {"rows": [], "prediction": [], "label": []}
    folds = np.zeros(rows, np.uint8) if folds is None else folds  # of a single fold there is no error
    edges = np.unique(quantiles(predictions, BINS, weights))
    counts, masses, predicted, labelled = np.zeros((4, len(edges) + 1))
    loss_of_fold, absolute, squared, deviations, squares = np.zeros((5, FOLDS))
    shift = float(labels[0])  # squares of numbers that lie far from 0 and close to each other would cancel
    for some in chunks(rows):
        y, p, mass = labels[some].astype(np.float64), predictions[some].astype(np.float64), mass_of(weights, some)
        bins = np.searchsorted(edges, predictions[some], "right")
        for total, values in ((counts, None), (masses, mass), (predicted, times(p, mass)), (labelled, times(y, mass))):
            total += np.bincount(bins, values, minlength=len(total))
        of_folds = [(absolute, np.abs(p - y)), (squared, np.square(p - y))]
        of_folds += [(deviations, y - shift), (squares, np.square(y - shift))]
        if losses is not None:
            of_folds.append((loss_of_fold, losses[some].astype(np.float64)))
        for total, values in of_folds:
            total += np.bincount(folds[some], times(values, mass), minlength=FOLDS)
    masses_of_fold = np.bincount(folds, weights, minlength=FOLDS)
    mass = masses_of_fold.sum().item()
    mean_squared, mean_label = squared.sum().item() / mass, labelled.sum().item() / mass
    varies = labels.min() < labels.max()
    spread = squares.sum().item() / mass - (deviations.sum().item() / mass) ** 2
    squared_without = means_without(squared, masses_of_fold)
    spread_without = means_without(squares, masses_of_fold) - means_without(deviations, masses_of_fold) ** 2
    has_spread = spread_without > 0  # NaN, of a fold without rows, is not
    r2_without = 1 - np.divide(squared_without, spread_without, out=np.full(FOLDS, np.nan), where=has_spread)
    all_vary = varies and (has_spread | np.isnan(spread_without)).all()
    metrics: Values = {
        "loss": None if losses is None else loss_of_fold.sum().item() / mass,
        "mae": absolute.sum().item() / mass,
        "mae_se": standard_error(numbers(means_without(absolute, masses_of_fold))),
        "rmse": math.sqrt(mean_squared),
        "rmse_se": standard_error(numbers(np.sqrt(squared_without))),
        "r2": 1 - mean_squared / spread if varies else None,
        "r2_se": standard_error(numbers(r2_without)) if all_vary else None,
        "xauc": xauc(predictions, labels, weights) if "xauc" in include else None,
        "bias": predicted.sum().item() / mass / mean_label if mean_label else None,
        "mean_label": mean_label,
        "rows": rows,
    }
    for name in ("mae", "rmse", "r2", "bias"):
        if name not in include:
            metrics |= {key: None for key in (name, f"{name}_se") if key in metrics}
    full = counts > 0
    return metrics, {
        "rows": counts[full].astype(int).tolist(),
        "prediction": (predicted[full] / masses[full]).tolist(),
        "label": (labelled[full] / masses[full]).tolist(),
    }
