"""What the metrics of all kinds of tasks are made of: quantiles, and means without the rows of each fold."""

from __future__ import annotations

import math

import numpy as np

CHUNK = 2**18
"""Rows that are worked on in float64 at once."""


def chunks(rows: int) -> list[slice]:
    """All rows, so many at a time."""
    return [slice(start, start + CHUNK) for start in range(0, rows, CHUNK)]


def mass_of(weights: np.ndarray | None, rows: slice) -> np.ndarray | None:
    """The weights of some rows in float64; None: all 1."""
    return None if weights is None else weights[rows].astype(np.float64)


def times(values: np.ndarray, mass: np.ndarray | None) -> np.ndarray:
    """Values by their weights; None: all 1."""
    return values if mass is None else values * mass


def means_without(sums: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Σ of all folds but one over their mass, for each; NaN for a fold without rows, or with all of them.

    Args:
        sums: over the rows of each fold.
        masses: weight of the rows of each fold.
    """
    means, total = np.full(len(sums), np.nan), masses.sum()
    some = (masses > 0) & (masses < total)
    means[some] = (sums.sum() - sums[some]) / (total - masses[some])
    return means


def numbers(values: np.ndarray) -> list[float | None]:
    """As JSON knows them: null for NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def quantiles(values: np.ndarray, parts: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The values that cut `values` into parts of equal weight."""
    if weights is None:
        places = np.arange(1, parts) * len(values) // parts
        return np.partition(values, places)[places]
    order = np.argsort(values)
    ends = np.cumsum(weights[order], dtype=np.float64)
    places = np.searchsorted(ends, np.arange(1, parts) * ends[-1] / parts, "right")
    return values[order[places]]
