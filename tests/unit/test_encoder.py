"""The encoder on any column that features accept."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recmtl.encoding.encoder import FEW, Encoder
from recmtl.encoding.values import arrow_type, canonical
from recmtl.encoding.vocabulary import Hashed, Vocabulary
from recmtl.errors import UserError
from recmtl.schema import FIRST, MISSING, UNSEEN, Feature, Table

INT64 = st.integers(-(2**63), 2**63 - 1)
COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "BIGINT": (pa.int64(), INT64),
    "UBIGINT": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "DOUBLE": (pa.float64(), st.floats() | st.sampled_from([0.0, -0.0, math.nan, math.inf])),
    "BOOLEAN": (pa.bool_(), st.booleans()),
    "DATE": (pa.date32(), st.dates()),
    "TIMESTAMP": (pa.timestamp("us"), st.datetimes()),
    "TIMESTAMP WITH TIME ZONE": (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(dt.timezone.utc))),
    "VARCHAR": (pa.string(), st.text() | st.sampled_from(["", "\0", "é", "é", "007", "7"])),
    "BLOB": (pa.binary(), st.binary()),
    "DECIMAL(9,2)": (pa.decimal128(9, 2), st.decimals(-99999, 99999, places=2)),
}


def make(folder: Path, value_type: str, column: pa.Array, known: list[Any], **options: Any) -> Encoder:
    """An encoder of one feature whose vocabulary has the canonical values `known`."""
    path = folder / "x.parquet"
    arrow = arrow_type(value_type)
    ids = pa.array(range(FIRST, FIRST + len(known)), pa.int32())
    pq.write_table(pa.table({"value": pa.array(known, arrow), "id": ids}), path)
    table = Table("x", FIRST + len(known), value_type=value_type)
    feature = Feature("x", table="x", column="x", **options)
    return Encoder((feature,), (table,), {"x": Vocabulary.build(path, value_type)}, pa.schema([("x", column.type)]))


@pytest.mark.parametrize("few", [FEW, -1], ids=["few", "many"])
@pytest.mark.parametrize("sql_type", COLUMNS)
def test_a_value_comes_back_or_is_missing_or_unseen(
    sql_type: str, few: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow, values = COLUMNS[sql_type]
    monkeypatch.setattr("recmtl.encoding.encoder.FEW", few)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.none() | values, min_size=1, max_size=12), st.integers(0, 12))
    def check(rows: list[Any], seen: int) -> None:
        folder = tmp_path_factory.mktemp("vocabulary")
        column = pa.array(rows, arrow)
        plain = canonical(column, sql_type)[0].to_pylist()
        known = list(dict.fromkeys(value for value in plain[:seen] if value is not None))
        encoder = make(folder, sql_type, column, known)
        ids = encoder.encode({"x": column})["x"].to_pylist()
        for row, value, id in zip(rows, plain, ids, strict=True):
            if row is None or (isinstance(row, float) and math.isnan(row)):
                assert id == MISSING
            elif value in known:
                assert known[id - FIRST] == value
            else:
                assert id == UNSEEN
        # One row at a time, and after saving and loading.
        encoder.save(folder / "encoder")
        loaded = Encoder.load(folder / "encoder")
        assert [loaded.encode({"x": column[i : i + 1]})["x"][0].as_py() for i in range(len(rows))] == ids

    check()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.lists(st.none() | st.sampled_from("abcd"), max_size=5), min_size=1, max_size=8))
def test_lists_leave_out_what_is_missing(rows: list[Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        column = pa.array(rows, pa.list_(pa.string()))
        encoder = make(Path(folder), "VARCHAR", column, ["a", "b"], kind="list", max_length=3)
        found = encoder.encode({"x": column})["x"].to_pylist()
    ids = {"a": 2, "b": 3, "c": UNSEEN, "d": UNSEEN}
    assert found == [[ids[item] for item in (row or [])[:3] if item is not None] for row in rows]


def test_text_between_separators_is_stripped_of_every_blank(tmp_path: Path) -> None:
    column = pa.array(["a, b", "a,\tb", " a ,,b\r\n", None, "", "\u3000b"])
    encoder = make(tmp_path, "VARCHAR", column, ["a", "b"], kind="list", separator=",")
    assert encoder.encode({"x": column})["x"].to_pylist() == [[2, 3], [2, 3], [2, 3], [], [], [3]]


def test_a_slice_of_a_list_column_is_read_from_its_own_start(tmp_path: Path) -> None:
    column = pa.array([["a"], ["b", "a"], None, ["b"]])
    encoder = make(tmp_path, "VARCHAR", column, ["a", "b"], kind="list")
    assert encoder.encode({"x": column[1:]})["x"].to_pylist() == [[3, 2], [], [3]]


@pytest.mark.parametrize("sql_type", COLUMNS)
def test_lists_of_any_kind_are_lists(sql_type: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Callers give large lists where `prepare` read others, of any type of values."""
    arrow, values = COLUMNS[sql_type]

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.none() | st.lists(st.none() | values, max_size=3), min_size=1, max_size=5))
    def check(rows: list[Any]) -> None:
        given_rows = pa.array(rows, pa.list_(arrow))
        encoder = make(tmp_path_factory.mktemp("x"), sql_type, given_rows, [], kind="sequence")
        wanted = encoder.encode({"x": given_rows})["x"]
        assert encoder.encode({"x": given_rows.cast(pa.large_list(arrow))})["x"].equals(wanted)

    check()


def test_lists_of_categories_are_lists_of_texts(tmp_path: Path) -> None:
    """As DuckDB gives an ENUM to Python, which `prepare` reads as text."""
    rows = [["b", None], None, [], ["a", "b", "c"]]
    encoder = make(tmp_path, "VARCHAR", pa.array(rows, pa.list_(pa.string())), ["a", "b"], kind="sequence")
    categories = pa.array(rows, pa.list_(pa.dictionary(pa.uint8(), pa.string())))
    assert encoder.encode({"x": categories})["x"].to_pylist() == [[3, 0], [], [], [2, 3, 1]]


@pytest.mark.parametrize("views", [pa.list_view(pa.int64()), pa.large_list_view(pa.int64())])
@pytest.mark.parametrize("kind", ["list", "sequence"])
def test_views_of_lists_are_lists(kind: str, views: pa.DataType, tmp_path: Path) -> None:
    rows = [[7, None], None, [], [9, 7, 8]]
    encoder = make(tmp_path, "BIGINT", pa.array(rows, pa.list_(pa.int64())), [7, 8, 9], kind=kind)
    wanted = encoder.encode({"x": pa.array(rows, pa.list_(pa.int64()))})["x"]
    assert encoder.encode({"x": pa.array(rows, views)})["x"].equals(wanted)
    assert encoder.encode({"x": pa.array(rows, views).slice(1, 3)})["x"].equals(wanted.slice(1, 3))


def test_a_decimal_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    kind = pa.decimal128(9, 2)
    encoder = make(tmp_path, "DECIMAL(9,2)", pa.array([], kind), ["1.50", "-0.10"])
    for rows, wanted in (
        ([1.5, 0.3, math.nan, None, 1e12, -0.1], [2, UNSEEN, MISSING, MISSING, UNSEEN, 3]),
        (list(map(decimal.Decimal, ("1.500", "1.555", "-0.1", "99999999999"))), [2, UNSEEN, 3, UNSEEN]),
    ):
        assert encoder.encode({"x": pa.array(rows)})["x"].to_pylist() == wanted
        assert [encoder.encode({"x": pa.array([row])})["x"][0].as_py() for row in rows] == wanted


def test_what_arrow_writes_otherwise_than_sql_is_no_text(tmp_path: Path) -> None:
    encoder = make(tmp_path, "TIME", pa.array(["12:00:00"]), ["12:00:00"])
    assert encoder.encode({"x": pa.array(["12:00:00", "12:00:00.000000"])})["x"].to_pylist() == [2, UNSEEN]
    with pytest.raises(UserError, match=r"column 'x' is time64\[us\], and the model was trained on string; cast it"):
        encoder.encode({"x": pa.array([dt.time(12)])})


def test_values_that_the_type_cannot_hold_are_unseen(tmp_path: Path) -> None:
    encoder = make(tmp_path, "BIGINT", pa.array([7]), [7, 8])
    for column, wanted in (
        (pa.array([7.0, 2.5, math.nan, None]), [2, UNSEEN, MISSING, MISSING]),
        (pa.array([8, 2**63], pa.uint64()), [3, UNSEEN]),
        (pa.array([None, None]), [MISSING, MISSING]),
        (pa.array(["7", "8"]).dictionary_encode().cast(pa.string()).cast(pa.int64()), [2, 3]),
    ):
        assert encoder.encode({"x": column})["x"].to_pylist() == wanted


def test_dates_before_1970_and_far_away(tmp_path: Path) -> None:
    days = [dt.date(1, 1, 1), dt.date(1969, 12, 31), dt.date(9999, 12, 31)]
    column = pa.array(days)
    assert make(tmp_path, "DATE", column, days).encode({"x": column})["x"].to_pylist() == [2, 3, 4]


def test_decimals_of_another_scale_are_the_same_value(tmp_path: Path) -> None:
    prepared = pa.array([decimal.Decimal("1.50")], pa.decimal128(5, 2))
    encoder = make(tmp_path, "DECIMAL(5,2)", prepared, ["1.50"])
    assert encoder.encode({"x": pa.array([decimal.Decimal("1.5")])})["x"].to_pylist() == [2]


def test_decimals_are_written_as_people_do(tmp_path: Path) -> None:
    column = pa.array([decimal.Decimal(0), decimal.Decimal("0.0000001"), None], pa.decimal128(38, 10))
    encoder = make(tmp_path, "DECIMAL(38,10)", column, ["0.0000000000", "0.0000001000"])
    assert encoder.encode({"x": column})["x"].to_pylist() == [2, 3, MISSING]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    encoder = make(tmp_path, "BIGINT", pa.array([7]), [7])
    with pytest.raises(UserError, match="no column 'x'"):
        encoder.encode({"y": pa.array([7])})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.none() | st.text(), min_size=1))
def test_hashed_tables_have_an_id_for_every_value(rows: list[str | None]) -> None:
    column = pa.array(rows, pa.string())
    table, feature = Table("x", 11, hashed=True, value_type="VARCHAR"), Feature("x", table="x", column="x")
    ids = Encoder((feature,), (table,), {"x": Hashed(11)}, pa.schema([("x", pa.string())])).encode({"x": column})["x"]
    assert all(
        id == MISSING if row is None else FIRST <= id < 11 for row, id in zip(rows, ids.to_pylist(), strict=True)
    )


def test_hashed_ids_are_spread(tmp_path: Path) -> None:
    ids = Hashed(102).look_up(np.arange(10_000, dtype=np.uint64))
    counts = np.bincount(ids, minlength=102)[FIRST:]
    assert counts.min() > 50
    assert counts.max() < 150


@pytest.mark.parametrize("few", [FEW, -1], ids=["few", "many"])
def test_columns_of_one_table_may_differ_in_type(tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recmtl.encoding.encoder.FEW", few)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"value": pa.array([7, 2**40]), "id": pa.array([2, 3], pa.int32())}), path)
    features = tuple(Feature(name, table="x", column=name) for name in ("small", "large", "none"))
    small, large, none = pa.array([7, None], pa.int32()), pa.array([2**40, 7]), pa.nulls(2)
    schema = pa.schema([("small", small.type), ("large", large.type), ("none", pa.int64())])
    encoder = Encoder(features, (Table("x", 4, value_type="BIGINT"),), {"x": Vocabulary.build(path, "BIGINT")}, schema)
    found = encoder.encode({"small": small, "large": large, "none": none})
    assert [column.to_pylist() for column in found.values()] == [[2, 0], [3, 2], [0, 0]]
    # A column that changed its type since counts where its values fit.
    found = encoder.encode({"small": pa.array([7.0, 7.5]), "large": pa.array([2**63, 7], pa.uint64()), "none": none})
    assert [column.to_pylist() for column in found.values()] == [[2, UNSEEN], [UNSEEN, 2], [0, 0]]


def test_columns_may_differ_in_length(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"value": pa.array(["a", "b"]), "id": pa.array([2, 3], pa.int32())}), path)
    features = tuple(Feature(name, table="x", column=name) for name in ("one", "several"))
    schema = pa.schema([("one", pa.string()), ("several", pa.string())])
    encoder = Encoder(
        features, (Table("x", 4, value_type="VARCHAR"),), {"x": Vocabulary.build(path, "VARCHAR")}, schema
    )
    found = encoder.encode({"one": pa.array(["b"]), "several": pa.array(["c", None, "a", "b"])[1:]})
    assert [column.to_pylist() for column in found.values()] == [[3], [0, 2, 3]]


@pytest.mark.parametrize("size", [10, 10_000])
def test_keys_are_found_in_vocabularies_of_any_size(size: int) -> None:
    known = np.arange(0, 3 * size, 3, dtype=np.uint64)
    wanted = np.random.default_rng(0).permutation(np.arange(4 * size, dtype=np.uint64))
    ids = Vocabulary(known, np.arange(FIRST, FIRST + size, dtype=np.int32)).look_up(wanted)
    there = (wanted % 3 == 0) & (wanted < 3 * size)
    np.testing.assert_array_equal(ids, np.where(there, FIRST + wanted // 3, UNSEEN))


def test_two_values_of_one_key_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recmtl.encoding.vocabulary.keys", lambda values: np.zeros(len(values), np.uint64))
    with pytest.raises(UserError, match=r"table 'x': 'a' and 'b' have one hash; change one of them in sql"):
        make(tmp_path, "VARCHAR", pa.array(["a"]), ["a", "b"])
