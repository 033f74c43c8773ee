"""Which type holds several others, and that what a view of files shows is what they hold."""

from __future__ import annotations

import itertools
import math
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from views import rows, view, write

from recmtl.data.prepare.duck import column_types, connect, refusal
from recmtl.data.prepare.footers import NANOSECONDS
from recmtl.data.prepare.types import NULL, unify


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    return connect("1GB", 1, tmp_path_factory.mktemp("spill"))


RULES = [
    # types that files have, the one that the view has, None where the column is refused
    ("TINYINT BIGINT", "BIGINT"),
    ("UTINYINT TINYINT", "SMALLINT"),
    ("UINTEGER INTEGER", "BIGINT"),
    ("UBIGINT UTINYINT", "UBIGINT"),
    ("UBIGINT TINYINT", "DECIMAL(20,0)"),
    ("BOOLEAN TINYINT", "TINYINT"),
    ("BOOLEAN BIGINT", "BIGINT"),
    ("BOOLEAN DOUBLE", "DOUBLE"),
    ("TINYINT FLOAT", "DOUBLE"),
    ("FLOAT DOUBLE", "DOUBLE"),
    ("BIGINT DOUBLE", "DOUBLE"),
    ("DECIMAL(5,2) DECIMAL(10,0)", "DECIMAL(12,2)"),
    ("DECIMAL(38,0) DECIMAL(5,2)", None),
    ("DECIMAL(5,2) BIGINT", "DECIMAL(21,2)"),
    ("DECIMAL(5,2) DOUBLE", None),
    ("DATE TIMESTAMP", "TIMESTAMP"),
    ("DATE TIMESTAMP TIMESTAMP_NS", "TIMESTAMP_NS"),
    ("TIMESTAMP_WITH_TIME_ZONE TIMESTAMP", None),
    ("TIMESTAMP_WITH_TIME_ZONE DATE", None),
    ("TIME TIME_NS", "TIME_NS"),
    ("TIME TIMESTAMP", None),
    ("VARCHAR BIGINT", None),
    ("VARCHAR BLOB", None),
    ("VARCHAR UUID", None),
    ("VARCHAR JSON", "VARCHAR"),
    (f"{NULL} VARCHAR", "VARCHAR"),
    (f"{NULL} {NULL}", NULL),
    (f"{NULL} INTEGER[]", "INTEGER[]"),
    (f"{NULL}[] INTEGER[]", "INTEGER[]"),
    ("TINYINT[] DOUBLE[]", "DOUBLE[]"),
    ("TINYINT[][] INTEGER[][]", "INTEGER[][]"),
    ("TINYINT[] TINYINT", None),
    ("VARCHAR[] INTEGER[]", None),
    ("STRUCT(a_TINYINT) STRUCT(a_TINYINT)", "STRUCT(a TINYINT)"),
    ("STRUCT(a_TINYINT) STRUCT(a_BIGINT)", None),
]


@pytest.mark.parametrize(("types", "expected"), RULES, ids=[rule[0] for rule in RULES])
def test_rules(types: str, expected: str | None) -> None:
    names = [name.replace("_WITH_TIME_ZONE", " WITH TIME ZONE").replace("a_", "a ") for name in types.split()]
    for order in itertools.permutations(names):
        assert unify(order) == expected


def times(kind: pa.DataType, most: int) -> st.SearchStrategy[Any]:
    unit = "ms" if kind == pa.time32("ms") else getattr(kind, "unit", "s")
    return st.integers(-most, most).map(lambda second: second * (10**9 // NANOSECONDS[unit]) + second % 7)


WHOLE = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    **{kind: st.integers(-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1) for kind in WHOLE[:4]},
    **{kind: st.integers(0, 2**kind.bit_width - 1) for kind in WHOLE[4:]},
    pa.bool_(): st.booleans(),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.decimal128(5, 2): st.decimals(-999, 999, places=2),
    pa.decimal128(20, 0): st.decimals(-(10**19), 10**19, places=0),
    pa.decimal128(38, 10): st.decimals(-(10**9), 10**9, places=10),
    pa.decimal256(50, 2): st.decimals(-999, 999, places=2),
    pa.string(): st.text("07a é☃", max_size=4),
    pa.large_string(): st.sampled_from(["007", "7", "true", "2020-01-01"]),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["a", "b"]),
    pa.binary(): st.binary(max_size=3),
    pa.date32(): st.integers(-(10**6), 10**6) | st.integers(-(2**30), 2**30),
    **{kind: times(kind, 2**35) for kind in map(pa.timestamp, ("s", "ms", "us"))},
    pa.timestamp("ns"): times(pa.timestamp("ns"), 2**33),
    pa.timestamp("us", "Europe/Paris"): times(pa.timestamp("us"), 2**35),
    pa.timestamp("ms", "UTC"): times(pa.timestamp("ms"), 2**35),
    **{kind: times(kind, 80_000).map(abs) for kind in (pa.time32("ms"), pa.time64("us"), pa.time64("ns"))},
    **{kind: st.integers(-(2**40), 2**40) for kind in map(pa.duration, ("s", "ns"))},
    pa.null(): st.none(),
}
SMALL = {kind: st.integers(0, 100) for kind in WHOLE}


@st.composite
def columns(draw: st.DrawFn) -> pa.Array:
    """A column of one of many types; of whole numbers half the time a small one, which more types hold."""
    kind = draw(st.sampled_from(list(VALUES)))
    values = VALUES[kind] if draw(st.booleans()) else SMALL.get(kind, VALUES[kind])
    numbers = draw(st.lists(st.none() | values, min_size=1, max_size=4))
    column = pa.array(numbers, pa.int64()).cast(physical).view(kind) if (physical := of_integer(kind)) else None
    column = pa.array(numbers, kind) if column is None else column
    return pa.ListArray.from_arrays([0, len(column), len(column)], column) if draw(st.integers(0, 3)) == 0 else column


def of_integer(kind: pa.DataType) -> pa.DataType | None:
    """The integers that values of a time are stored as."""
    if not pa.types.is_temporal(kind):
        return None
    return pa.int32() if kind.bit_width == 32 else pa.int64()


def exact(column: pa.Array) -> list[Any]:
    """Values that are equal where the columns' values are the same: times as nanoseconds."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return exact(column.storage)
    if pa.types.is_nested(kind):
        return [None if item.values is None else exact(item.values) for item in column]
    if physical := of_integer(kind):
        unit = 86400 * 10**9 if pa.types.is_date(kind) else NANOSECONDS[kind.unit]
        name = "instant" if getattr(kind, "tz", None) else "time"
        return [None if value is None else (name, value * unit) for value in column.view(physical).to_pylist()]
    return ["nan" if isinstance(value, float) and math.isnan(value) else value for value in column.to_pylist()]


def durations_as_integers(column: pa.Array) -> pa.Array:
    """Parquet knows no durations: what the engine sees of them is their number."""
    if pa.types.is_list(column.type):
        return pa.ListArray.from_arrays(column.offsets, durations_as_integers(column.values))
    return column.view(pa.int64()) if pa.types.is_duration(column.type) else column


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(columns(), min_size=1, max_size=3))
def test_any_types(
    tmp_path_factory: pytest.TempPathFactory, engine: duckdb.DuckDBPyConnection, files: list[pa.Array]
) -> None:
    """Every value comes out as it was, or the column is refused, by the names of the files and types."""
    folder = tmp_path_factory.mktemp("types")
    tables = [{"x": column, "n": range(len(column))} for column in files]
    paths = [write(folder / f"{number}.parquet", table) for number, table in enumerate(tables)]
    engine.execute("drop view if exists raw")
    kind = column_types(view(folder, db=engine), "raw")["x"]
    if line := refusal(kind):
        assert "column 'x' is" in line
        assert sum(str(path) in line for path in paths) >= min(2, len(paths)) or "would be rounded" in line
        assert len({str(column.type) for column in files}) > 1 or "would be rounded" in line
        return
    found = [value for chunk in rows(engine)["x"].chunks for value in exact(chunk)]
    assert found == [value for column in files for value in exact(durations_as_integers(column))]
