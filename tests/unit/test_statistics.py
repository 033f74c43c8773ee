"""Mean and deviation, against exact fractions, in any order."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recmtl.features.statistics import ExactSum, Moments

NUMBERS = st.floats(-3.4e38, 3.4e38).filter(lambda x: x == 0 or abs(x) > 1e-100)


def moments(*parts: list[float]) -> Moments:
    found = Moments()
    for part in parts:
        found.add(np.array(part, np.float64))
    return found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_sums_are_exact(values: list[float]) -> None:
    total = ExactSum()
    total.add(np.array(values, np.float64))
    assert total.total() == sum(map(Fraction, values))


@settings(max_examples=100, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=30))
def test_mean_and_deviation_are_the_nearest_doubles_in_any_order(values: list[float]) -> None:
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / len(exact)
    found = moments(values)
    assert found.mean() == float(mean)
    assert abs(Fraction(found.deviation()) ** 2 - variance) <= variance * Fraction(1, 10**14)
    shuffled = sorted(values)
    again = moments(shuffled[::2], [], shuffled[1::2])
    assert (again.mean(), again.deviation()) == (found.mean(), found.deviation())


def test_a_constant_has_no_deviation() -> None:
    for value in (1650812345.0, 0.1, -3e38, 1e-30):
        found = moments([value] * 1001)
        assert (found.mean(), found.deviation()) == (value, 0.0)


def test_seconds_of_half_an_hour() -> None:
    seconds = 1650812345 + np.random.default_rng(0).uniform(0, 1800, 10_000)
    found = moments(seconds.tolist())
    centred = seconds - 1650812345
    assert found.mean() - 1650812345 == pytest.approx(centred.mean(), rel=1e-9)
    assert found.deviation() == pytest.approx(centred.std(), rel=1e-12)


def test_missing_numbers_do_not_count() -> None:
    found = moments([1.0, math.nan, 3.0])
    assert (found.count, found.mean(), found.deviation()) == (2, 2.0, 1.0)
    assert (moments([]).mean(), moments([math.nan]).deviation()) == (0.0, 0.0)
