"""Mean and deviation of numbers that do not depend on the order of the rows: every sum is exact.

A double is m · 2^e with a whole number m of 53 bits. Whole numbers of one exponent add up without rounding, so a sum is
one big integer for every exponent; the mean is rounded once, at the end (the idea of a superaccumulator, Kulisch 1986).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

LOW_BITS = 26
SPLITTER = float(2**27 + 1)
EXPONENTS = 4096
"""More than doubles have, with room below for those of split numbers."""
ROWS = 2**24
"""Halves of mantissas have at most 27 bits: so many add up exactly in a double."""


class ExactSum:
    """The sum of doubles, exact."""

    def __init__(self) -> None:
        self._integers: dict[int, int] = {}

    def add(self, values: np.ndarray) -> None:
        """Add finite numbers [n]."""
        for start in range(0, len(values), ROWS):
            fractions, exponents = np.frexp(values[start : start + ROWS])
            whole = np.ldexp(fractions, 53).astype(np.int64)
            high = whole >> LOW_BITS
            places = exponents.astype(np.int64) + EXPONENTS // 2
            for part, shift in ((high, LOW_BITS), (whole - (high << LOW_BITS), 0)):
                sums = np.bincount(places, part.astype(np.float64), EXPONENTS)
                for place in np.flatnonzero(sums).tolist():
                    exponent = place - EXPONENTS // 2 - 53 + shift
                    self._integers[exponent] = self._integers.get(exponent, 0) + int(sums[place])

    def merge(self, other: ExactSum) -> None:
        """Add the numbers of another sum."""
        for exponent, integer in other._integers.items():
            self._integers[exponent] = self._integers.get(exponent, 0) + integer

    def total(self) -> Fraction:
        """The sum."""
        terms = (Fraction(integer) * Fraction(2) ** exponent for exponent, integer in self._integers.items())
        return sum(terms, Fraction(0))


class Moments:
    """Count, mean and standard deviation of numbers, in one pass; NaN stands for a missing one."""

    def __init__(self) -> None:
        self.count = 0
        self._sum, self._squares = ExactSum(), ExactSum()

    def add(self, values: np.ndarray) -> None:
        """Add float64 numbers [n], |x| below 1e150."""
        known = values[~np.isnan(values)]
        self.count += len(known)
        self._sum.add(known)
        for part in _square(known):
            self._squares.add(part)

    def merge(self, other: Moments) -> None:
        """Add the numbers that another one has taken in."""
        self.count += other.count
        self._sum.merge(other._sum)
        self._squares.merge(other._squares)

    def exact_mean(self) -> Fraction:
        """Σ x / n; 0 without numbers."""
        return self._sum.total() / self.count if self.count else Fraction(0)

    def mean(self) -> float:
        """The nearest double to it."""
        return float(self.exact_mean())

    def deviation(self) -> float:
        """√(Σ (x − mean)² / n), of the population: (n Σx² − (Σx)²) / n² without rounding before the root."""
        if not self.count:
            return 0.0
        total = self._sum.total()
        return _root((self.count * self._squares.total() - total * total) / self.count**2)


def signed_log1p(values: np.ndarray) -> np.ndarray:
    """log1p of numbers, of a negative one −log1p(−x)."""
    return np.sign(values) * np.log1p(np.abs(values))


def _square(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x² as the sum of two doubles, without rounding (Dekker 1971)."""
    scaled = SPLITTER * x
    high = scaled - (scaled - x)
    low = x - high
    square = x * x
    return square, ((high * high - square) + 2 * high * low) + low * low


def _root(value: Fraction) -> float:
    """√value: scaled to whole numbers, as the value itself may lie beyond doubles."""
    if value <= 0:
        return 0.0
    # An even power of two brings the value to about 2^128, whose root has the 64 bits that a double needs.
    shift = 2 * ((128 - (value.numerator.bit_length() - value.denominator.bit_length())) // 2)
    root = math.isqrt(int(value * Fraction(2) ** shift))
    return float(Fraction(root) * Fraction(2) ** (-shift // 2))
