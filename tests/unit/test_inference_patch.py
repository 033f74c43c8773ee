"""A patch gives the very bytes, whatever changed, and holds little more than what did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recmtl.inference import patch
from recmtl.inference.patch import (
    FRESH,
    Records,
    apply_patch,
    fresh_bytes,
    record_operations,
    row_group_operations,
    same_keys,
    same_rows,
    write_patch,
)

fresh = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.integers(0, 40)


def rebuilt(folder: Path, operations: np.ndarray) -> int:
    """Whether `old` and the patch give `new`; returns the number of new bytes."""
    write_patch(folder / "new", operations, folder / "patch")
    apply_patch(folder / "old", folder / "patch", folder / "again")
    assert (folder / "again").read_bytes() == (folder / "new").read_bytes()
    assert (folder / f"patch{FRESH}").stat().st_size == fresh_bytes(operations)
    return fresh_bytes(operations)


def save(path: Path, values: np.ndarray) -> Records:
    with path.open("wb") as file:
        np.save(file, values)
    return Records.load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patches")


@pytest.mark.parametrize(
    "kind",
    [np.float32, np.float16, np.uint8, pytest.param(np.int32, id="of one number")],
    ids=lambda kind: kind.__name__,
)
@fresh
@given(before=sizes, now=sizes, seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_rows_that_change_and_are_more_or_fewer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type, before: int, now: int, seed: int, share: float
) -> None:
    monkeypatch.setattr(patch, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(seed)
    shape = (3,) if kind is not np.int32 else ()  # generations are one number a row
    old = rng.integers(0, 200, (before, *shape)).astype(kind)
    new = rng.integers(0, 200, (now, *shape)).astype(kind)
    both = min(before, now)
    stays = rng.random(both) >= share
    new[:both][stays] = old[:both][stays]
    records = save(folder / "new", new), save(folder / "old", old)
    same = same_rows(*records)
    equal = [bool((new[row] == old[row]).all()) for row in range(both)]
    assert same.tolist() == [*equal, *[False] * (now - both)]
    source = np.where(same, np.arange(now), -1)
    assert rebuilt(folder, record_operations(source, *records)) == 128 + int((~same).sum()) * new[:1].nbytes


def test_numbers_are_compared_by_their_bytes(folder: Path) -> None:
    """Minus zero is another number than zero, and a NaN the same as itself."""
    old, new = np.array([[0.0], [np.nan], [1.0]]), np.array([[-0.0], [np.nan], [1.0]])
    assert same_rows(save(folder / "new", new), save(folder / "old", old)).tolist() == [False, True, True]


@fresh
@given(old=st.sets(st.integers(0, 60)), new=st.sets(st.integers(0, 60)))
def test_sorted_keys_that_come_and_go(folder: Path, old: set[int], new: set[int]) -> None:
    before, now = (np.array(sorted(keys), np.uint64) << np.uint64(57) for keys in (old, new))
    records = save(folder / "new", now), save(folder / "old", before)
    assert rebuilt(folder, record_operations(same_keys(*records), *records)) == 128 + 8 * len(set(now) - set(before))


@fresh
@given(
    old=st.lists(st.integers(0, 5), max_size=8),
    new=st.lists(st.integers(0, 5), max_size=8),
    codec=st.sampled_from(["snappy", "none", "zstd"]),
)
def test_row_groups_of_parquet(folder: Path, old: list[int], new: list[int], codec: str) -> None:
    """A row group a number; the same numbers give the same bytes, wherever they stand."""
    schema = pa.schema([("value", pa.string()), ("id", pa.int32())])
    for name, numbers in (("old", old), ("new", new)):
        with pq.ParquetWriter(folder / name, schema, compression=codec) as file:
            for number in numbers:
                texts = [f"{number} {row} is the text of this row" for row in range(50)]
                file.write_batch(pa.record_batch([pa.array(texts), pa.array([number] * 50, pa.int32())], schema=schema))
    operations = row_group_operations(folder / "new", folder / "old")
    rebuilt(folder, operations)
    assert (operations[:, 2] > 0).sum() == sum(number in old for number in new)
