"""Numeric features: what is standardised has mean 0 and deviation 1, whatever the numbers and the threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from prepared import only, read_all, run

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
