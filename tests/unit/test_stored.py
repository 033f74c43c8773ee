"""Rows between two steps of `prepare`: each comes back once, of the type that it had, and Ctrl-C stops a scan."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from recmtl.data.prepare.duck import arrow_batches, column_types, connect, one_line_errors
from recmtl.data.prepare.stored import Stored, scatter, show

TYPES = """
    true; -4::tinyint; 18446744073709551615::ubigint; 170141183460469231731687303715884105727::hugeint; 'nan'::double;
    340282366920938463463374607431768211455::uhugeint; 12.345::decimal(30, 3); '☃'; 'a'::blob; '101'::bit; null;
    '00000000-0000-0000-0000-000000000001'::uuid; 'b'::enum('b', 'a'); '{"a": 1}'::json; date '2024-02-03'; 1::float;
    timestamp_ns '2024-02-03 01:02:03.123456789'; timestamptz '2024-02-03 01:02:03+02'; timetz '01:02:03+01';
    interval '1 month 2 days'; ['x', null]; [1::hugeint]; ['b'::enum('b', 'a')]; [[1]]; {'a': 1}; [1, 2]::int[2]
"""


@pytest.fixture
def db(tmp_path: Path) -> duckdb.DuckDBPyConnection:
    return connect("1GB", 2, tmp_path / "spill")


def test_every_row_is_in_its_bucket_once(db: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """Buckets that are empty, and chunks without a row of some bucket, are none of a problem."""
    number, buckets, path = np.arange(10_000), 5, tmp_path / "rows"
    bucket = np.where(number < 3000, 1, number % 4).astype(np.uint16)
    rows = pa.table({"number": number, "bucket": bucket})
    assert list(scatter(rows.to_reader(max_chunksize=1000), buckets, path)) == list(range(1000, 10_001, 1000))
    for i in range(buckets):
        found = pa.Table.from_batches(Stored(path, i, buckets), Stored(path).schema)
        assert found.to_pydict() == {"number": number[bucket == i].tolist()}


def test_a_query_scans_as_often_as_it_likes(db: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    db.execute("create view rows as select range as x, range % 3 as bucket from range(10000)")
    for _ in scatter(arrow_batches(db, "select x, cast(bucket as usmallint) from rows", 2048), 3, tmp_path / "rows"):
        pass
    show(db, Stored(tmp_path / "rows", 1, 3), "third", {"x": "BIGINT"})
    twice = (
        "select count(*), sum(x) from (select x from third union all select a.x from third a join third b using (x))"
    )
    expected = sum(range(1, 10_000, 3))
    assert [db.execute(twice).fetchall() for _ in range(2)] == [[(2 * 3333, 2 * expected)]] * 2


@pytest.mark.parametrize("value", [value.strip() for value in TYPES.split(";")])
def test_types_come_back(db: duckdb.DuckDBPyConnection, tmp_path: Path, value: str) -> None:
    db.execute(f"create view rows as select {value} as x, range as i from range(3000)")
    for _ in scatter(arrow_batches(db, "select *, 0::usmallint from rows", 2048), 1, tmp_path / "rows"):
        pass
    show(db, Stored(tmp_path / "rows"), "back", column_types(db, "rows"))
    same = "a.x is not distinct from b.x and hash(a.x) = hash(b.x) and typeof(a.x) = typeof(b.x)"
    assert db.execute(f"select count(*) from rows a join back b using (i) where {same}").fetchall() == [(3000,)]


def test_ctrl_c_in_a_scan(db: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in scatter(arrow_batches(db, "select range, 0::usmallint from range(100)", 2048), 1, tmp_path / "rows"):
        pass
    show(db, Stored(tmp_path / "rows"), "rows", {"range": "BIGINT"})

    def pressed(self: pa.RecordBatchFileReader, number: int) -> pa.RecordBatch:
        raise KeyboardInterrupt

    monkeypatch.setattr(pa.RecordBatchFileReader, "get_batch", pressed)
    with pytest.raises(KeyboardInterrupt), one_line_errors("recipe", "1GB"):
        db.execute("select sum(range) from rows")
