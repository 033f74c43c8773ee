"""Tables of an export: what is written is what is read, and int8 rows are as near as their scale says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from recmtl.errors import UserError
from recmtl.inference import tables
from recmtl.inference.signature import StoredTable
from recmtl.inference.tables import DTYPES, iter_rows, open_table, quantize, write_table

ONE_PART_IN = 1e-3
"""Of a scale: what float32 arithmetic may add to half a scale."""

SMALLEST = float(np.finfo(np.float32).smallest_normal)
"""Below it numbers have fewer bits, or are taken as 0."""


def rows_of(magnitude: float) -> st.SearchStrategy[np.ndarray]:
    numbers = st.floats(-1, 1, width=32).map(lambda x: np.float32(x * magnitude))
    return arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=numbers)


def check(rows: np.ndarray) -> None:
    codes, scales = quantize(torch.from_numpy(rows))
    assert (codes.dtype, scales.dtype) == (torch.uint8, torch.bfloat16)
    scale, offset = scales.double().numpy()[:, :, None].transpose(1, 0, 2)
    assert np.isfinite(scale).all()
    assert (scale >= 0).all()
    assert (offset <= rows.min(1, keepdims=True)).all()
    error = np.abs(codes.double().numpy() * scale + offset - rows.astype(np.float64))
    assert (error <= scale * (0.5 + ONE_PART_IN) + SMALLEST).all()
    # No larger than it must be: the range over 255, each of its two ends rounded to 8 bits.
    widest = np.ptp(rows.astype(np.float64), axis=1, keepdims=True) + np.abs(rows).max(1, keepdims=True) / 100
    assert (scale <= widest / 255 * 1.02 + 1e-40).all()


@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 1 / 1e7**0.5, 1.0, 1e9, 1e30])
def test_the_error_is_half_a_scale_at_most(magnitude: float) -> None:
    @settings(max_examples=60, deadline=None)
    @given(rows_of(magnitude))
    def some(rows: np.ndarray) -> None:
        check(rows)

    some()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1e-20, 1e-3, 1.0, 1e20]), st.lists(st.floats(0.5, 1, width=32), min_size=1, max_size=5))
def test_rows_of_one_magnitude_apart_from_zero(magnitude: float, values: list[float]) -> None:
    check(np.array([values, [-value for value in values]], np.float32) * np.float32(magnitude))


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.1, -0.1, 1 / 3, 3e-4, -(1e7**-0.5), 1e-38, 1e30])
def test_constant_rows(value: float) -> None:
    rows = np.full((3, 8), value, np.float32)
    check(rows)
    codes, scales = quantize(torch.from_numpy(rows))
    found = next(iter_rows([codes, scales]))
    np.testing.assert_allclose(found, rows, rtol=1 / 2**15, atol=1e-40)
    if value in (0.0, 1.0, -1.0):  # what bfloat16 holds is exact
        assert (found == rows).all()


def test_rows_of_a_large_table_at_its_start() -> None:
    """±1/√rows: float16 would hold scales of them in its smallest numbers, with a bit or two."""
    bound = 1e7**-0.5
    rows = np.random.default_rng(0).uniform(-bound, bound, (1000, 32)).astype(np.float32)
    check(rows)
    check(np.where(rows > 0, bound, -bound).astype(np.float32))
    error = np.concatenate(list(iter_rows(list(quantize(torch.from_numpy(rows)))))) - rows
    assert np.abs(error).max() < 2 * bound / 255 / 2 * 1.03


@pytest.mark.parametrize("source", [np.float32, np.float16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, source: type) -> None:
    monkeypatch.setattr(tables, "BLOCK_ROWS", 3)
    (tmp_path / "tables").mkdir()
    rows = np.random.default_rng(0).normal(size=(8, 5)).astype(source)
    files = write_table(rows, tmp_path / "tables", "item@shared", dtype)
    assert sorted(files) == sorted(path.name for path in (tmp_path / "tables").iterdir())
    opened = open_table(tmp_path, StoredTable("item@shared", "item", "", 8, 5, files), dtype)
    blocks = list(iter_rows(opened))
    assert [len(block) for block in blocks] == [3, 3, 2]
    found = np.concatenate(blocks)
    assert found.dtype == np.float32
    wanted = rows.astype(np.float32)
    if dtype == "int8":
        codes, scales = quantize(torch.from_numpy(wanted))
        assert torch.equal(opened[0], codes)
        assert torch.equal(opened[1], scales)
        assert (np.abs(found - wanted) <= scales[:, :1].float().numpy() * 0.501).all()
    else:
        np.testing.assert_array_equal(found, wanted.astype(dtype).astype(np.float32))


def test_sizes(tmp_path: Path) -> None:
    """At 32 numbers a row: an int8 row takes 36 bytes where a float32 row takes 128."""
    rows = np.random.default_rng(0).normal(size=(20_000, 32)).astype(np.float32)
    sizes = {}
    for dtype in DTYPES:
        files = write_table(rows, tmp_path, dtype, dtype)
        sizes[dtype] = sum((tmp_path / name).stat().st_size for name in files)
    assert sizes["int8"] <= 0.3 * sizes["float32"]
    assert sizes["float16"] == pytest.approx(0.5 * sizes["float32"], rel=1e-3)


def test_a_file_that_is_not_what_the_signature_says_is_named(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    files = write_table(np.zeros((4, 3), np.float32), tmp_path / "tables", "x", "float32")
    for table, dtype in (
        (StoredTable("x", "x", "", 5, 3, files), "float32"),
        (StoredTable("x", "x", "", 4, 3, files), "float16"),
    ):
        with pytest.raises(UserError, match=r"x\.npy: float32 \[4, 3\], not "):
            open_table(tmp_path, table, dtype)
    path = tmp_path / "tables" / "x.npy"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"x\.npy: cannot be mapped"):
        open_table(tmp_path, StoredTable("x", "x", "", 4, 3, files), "float32")
    np.save(path, np.array([{}], object))  # a pickle
    with pytest.raises(UserError, match=r"x\.npy: cannot be mapped"):
        open_table(tmp_path, StoredTable("x", "x", "", 4, 3, files), "float32")
