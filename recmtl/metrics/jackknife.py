"""Standard errors by the delete-a-group jackknife: how far a metric would move with other rows of the same kind.

Every sampling unit (a user, or a row) belongs to one of 100 folds by a fixed hash. θ_(g) is the metric without the rows
of fold g, over the G folds that have rows:

    SE² = (G − 1)/G · Σ_g (θ_(g) − mean of θ_(g))²

The difference of two models on the same rows has the θ_(g) of one less those of the other: what both owe to the rows
falls out. Source: Shao and Tu, The Jackknife and Bootstrap, 1995, section 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FOLDS = 100

Folds = Sequence[float | None]
"""A metric without each of the folds; None: the fold has no rows, so that nothing was left out."""


def mixed(units: np.ndarray) -> np.ndarray:
    """A fixed hash of integers: splitmix64's output for each as the state.

    Args:
        units: int64 [n].

    Returns:
        uint64 [n].

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, figure 11.
    """
    found = units.astype(np.uint64)
    found += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        found ^= found >> np.uint64(shift)
        found *= np.uint64(factor)
    found ^= found >> np.uint64(31)
    return found


def folds_of(units: np.ndarray) -> np.ndarray:
    """The fold of every sampling unit: its hash modulo `FOLDS`.

    Args:
        units: int64 [n]: users' hashes or row numbers.

    Returns:
        uint8 [n].
    """
    return (mixed(units) % np.uint64(FOLDS)).astype(np.uint8)


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


def standard_error(folds: Folds) -> float | None:
    """The jackknife's standard error; None for fewer than two folds that have rows."""
    known = np.array([value for value in folds if value is not None])
    if len(known) < 2:
        return None
    return math.sqrt((len(known) - 1) / len(known) * np.square(known - known.mean()).sum().item())


def difference(one: Folds, other: Folds) -> list[float | None]:
    """θ_(g) of the difference of two models on the same rows."""
    return [None if a is None or b is None else a - b for a, b in zip(one, other, strict=True)]


def average(folds: Sequence[Folds]) -> list[float | None]:
    """θ_(g) of the mean over several runs on the same rows."""
    return [
        None if any(value is None for value in values) else math.fsum(v for v in values if v is not None) / len(values)
        for values in zip(*folds, strict=True)
    ]
