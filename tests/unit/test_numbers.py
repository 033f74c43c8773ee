"""Numeric features: what is standardised has mean 0 and deviation 1, whatever the numbers and the threads."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepared import only, read_all, run

from recmtl.data.numbers import Moments, moments

RNG = np.random.default_rng(0)
COLUMNS = {
    "half an hour of unix seconds": 1_650_812_345 + RNG.integers(0, 1800, 500),
    "a second of unix nanoseconds": 1_650_812_345_000_000_000 + RNG.integers(0, 10**9, 500),
    "neighbouring doubles": RNG.choice([1e16, 1e16 + 2], 500),
    "tiny": RNG.normal(3, 1, 500) * 1e-30,
    "below the normal numbers": RNG.integers(1, 9, 500) * 1e-310,
    "huge": RNG.normal(3, 1, 500) * 1e30,
    "an outlier": np.append(RNG.normal(0, 1, 499), 1e30),
    "negative": -RNG.gamma(1, 5, 500),
    "seldom": (np.arange(500) == 7).astype(float),
}


def prepared(folder: Path, values: pa.Array, transform: str = "standardize", **options: int) -> np.ndarray:
    table, text = only("numeric", values, f'transform = "{transform}"')
    run(folder, table, text, **options)
    return read_all(folder)["x"].to_numpy().astype(np.float64)


@pytest.mark.parametrize("name", COLUMNS)
def test_standardized_columns_have_mean_0_and_deviation_1(tmp_path: Path, name: str) -> None:
    found = prepared(tmp_path, pa.array(COLUMNS[name]))
    assert abs(found.mean()) < 1e-6
    assert found.std() == pytest.approx(1, abs=1e-5) or name == "below the normal numbers"


@pytest.mark.parametrize("value", [1650812345, 0.1, -7.3, 0.0, -0.0, 1e-320, 3e38, -1e30, 2**62 + 1])
@pytest.mark.parametrize("transform", ["standardize", "log1p_standardize"])
def test_a_constant_is_0(tmp_path: Path, value: float, transform: str) -> None:
    assert set(prepared(tmp_path, pa.array([value] * 50), transform)) == {0.0}


def test_what_a_deviation_makes_too_large_stays_finite(tmp_path: Path) -> None:
    """A test row far from training rows that hardly differ."""
    table = pa.table({"x": [1e-3, 2e-3] * 10 + [1e38], "y": [0, 1] * 10 + [1], "part": ["train"] * 20 + ["test"]})
    _, text = only("numeric", pa.array([1.0]), 'transform = "standardize"')
    text = text.replace("val = 0.0\ntest = 0.0", 'by = "column"\ncolumn = "part"')
    run(tmp_path, table, text)
    assert read_all(tmp_path)["x"].to_numpy().max() == np.float32(3.4e38)


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(
        st.none() | st.floats(-3e38, 3e38) | st.sampled_from([1e16, 1e16 + 2, 0.1]), min_size=1, max_size=30
    )
)
def test_moments_are_those_of_exact_arithmetic(values: list[float | None]) -> None:
    db = duckdb.connect(config={"threads": "1"})
    db.register("rows", pa.table({"x": pa.array(values, pa.float64())}))
    (found,) = moments(db, ["x"], "rows")
    numbers = [Fraction(value) for value in values if value is not None]
    if not numbers:
        assert found == Moments()
        return
    mean = sum(numbers) / len(numbers)
    std = float(sum((number - mean) ** 2 for number in numbers) / len(numbers)) ** 0.5
    largest = max(map(abs, numbers))
    assert abs(Fraction(found.mean) + Fraction(found.mean_tail) - mean) <= largest / 2**60
    if len(set(numbers)) == 1:
        assert (found.mean, found.std) == (numbers[0], 1.0)
    elif std > 1e-300:
        assert found.std == pytest.approx(std, rel=1e-6)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), scale=st.integers(-300, 30))
def test_bits_do_not_depend_on_threads_or_the_order_of_rows(seed: int, scale: int) -> None:
    rng = np.random.default_rng(seed)
    column = rng.normal(rng.normal(), 1, 200_000) * 10.0**scale
    found = set()
    for threads in (1, 4):
        for values in (column, rng.permutation(column)):
            db = duckdb.connect(config={"threads": str(threads)})
            db.register("rows", pa.table({"x": values}))
            found.update(moments(db, ["x", "ln(1 + abs(x))"], "rows"))
    assert len(found) == 2
