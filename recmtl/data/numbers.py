"""Numeric features: their transforms, and means and deviations that are the same however the rows are added up.

A sum of floating-point numbers depends on their order, and so on the number of threads. Here numbers are scaled by a
power of two, such that the largest is just below 2^62, and rounded to integers, whose sum is exact in any order:

    mean = Σ round(x · 2^k) / (n · 2^k)

What rounding loses is 2^-62 of the largest number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import duckdb

from recmtl.data.duck import first_row, quote
from recmtl.data.recipe import FeatureSpec

FLOAT32_MAX = 3.4e38
"""Near enough to the largest number that the files can hold. Larger ones are taken as infinite, that is as missing."""
SUM_BITS = 62
"""Numbers are below 2 to this power when they are added: they are 64-bit integers, and their sum has 128 bits."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of a column; those of a column without numbers change nothing."""

    mean: float = 0.0
    mean_tail: float = 0.0
    """What the exact mean is beyond `mean`."""
    std: float = 1.0
    """1 where all numbers are the same."""


def transformed(feature: FeatureSpec) -> str:
    """The number after log1p, null where it is missing or not finite."""
    number = f"cast({quote(feature.column)} as double)"
    finite = f"case when abs({number}) < {FLOAT32_MAX} then {number} end"
    return f"sign({finite}) * ln(1 + abs({finite}))" if feature.transform.startswith("log1p") else finite


def encoded_number(feature: FeatureSpec, found: Moments) -> str:
    """The number as it is written: standardized in double precision, kept within float32, 0 where it is missing."""
    number = transformed(feature)
    if feature.transform.endswith("standardize"):
        number = f"{_deviation(number, found)} / {_double(found.std)}"
    return f"cast(greatest(least(coalesce({number}, 0), {FLOAT32_MAX}), -{FLOAT32_MAX}) as float)"


def moments(db: duckdb.DuckDBPyConnection, expressions: list[str], rows: str) -> list[Moments]:
    """Mean and standard deviation of SQL expressions over `rows`, nulls left out; three scans for all of them."""
    columns = [f"x{i}" for i in range(len(expressions))]
    named = ", ".join(f"{expression} as {x}" for expression, x in zip(expressions, columns, strict=True))

    def scan(aggregates: Iterable[str]) -> list[Any]:
        """One number for each aggregate; 0 where there is nothing to add up."""
        row = first_row(db, f"select {', '.join(aggregates)} from (select {named} from {rows})") if columns else ()
        assert row is not None
        return [value or 0 for value in row]

    extremes = scan(f"{function}({x})" for function in ("count", "min", "max") for x in columns)
    counts, lows, highs = (extremes[i * len(columns) : (i + 1) * len(columns)] for i in range(3))

    powers = [SUM_BITS - _exponent(max(-low, high)) for low, high in zip(lows, highs, strict=True)]
    totals = scan(f"sum({_integer(_scaled(x, power))})" for x, power in zip(columns, powers, strict=True))
    means = [_mean(*values) for values in zip(totals, counts, powers, strict=True)]

    # The largest deviation becomes less than 1; its square is then scaled to an integer.
    spreads = [max(high - m.mean, m.mean - low) for low, high, m in zip(lows, highs, means, strict=True)]
    powers = [-_exponent(spread) - 1 for spread in spreads]
    scaled = [_scaled(_deviation(x, m), power) for x, m, power in zip(columns, means, powers, strict=True)]
    totals = scan(f"sum({_integer(f'{x} * {x} * {_double(2.0**SUM_BITS)}')})" for x in scaled)
    found = []
    for m, total, count, power, low, high in zip(means, totals, counts, powers, lows, highs, strict=True):
        variance = float(Fraction(int(total), max(count, 1) * 2**SUM_BITS))
        std = math.ldexp(math.sqrt(variance), -power) if low < high else 0.0
        found.append(replace(m, std=std or 1.0))
    return found


def _mean(total: int, count: int, power: int) -> Moments:
    mean = Fraction(int(total), max(count, 1)) / Fraction(2) ** power
    return Moments(float(mean), float(mean - Fraction(float(mean))))


def _deviation(number: str, found: Moments) -> str:
    return f"({number} - {_double(found.mean)} - {_double(found.mean_tail)})"


def _exponent(number: float) -> int:
    """The least e with |number| < 2^e."""
    return math.frexp(number)[1]


def _scaled(number: str, power: int) -> str:
    """`number` · 2^power, in two steps: 2^power alone may be too large for a double."""
    return f"({number} * {_double(2.0 ** (power // 2))} * {_double(2.0 ** (power - power // 2))})"


def _integer(number: str) -> str:
    return f"cast(round({number}) as bigint)"


def _double(number: float) -> str:
    """A literal that is this very number."""
    return f"cast('{number!r}' as double)"
