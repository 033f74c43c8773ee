"""`recmtl.load(EXPORT).predict`: the right value, or one line that names the column."""

from __future__ import annotations

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from new_rows import read_new_rows
from trained import FEATURE_COLUMNS, LABELS

import recmtl
from recmtl.errors import UserError
from recmtl.inference.exported import ROWS_AT_ONCE, ExportedModel

D = decimal.Decimal
ROWS = 40


@pytest.fixture(scope="module")
def model(esmm: Path) -> ExportedModel:
    return recmtl.load(esmm / "export")


@pytest.fixture(scope="module")
def rows(esmm: Path, model: ExportedModel, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The columns of the recipe's query that the model reads."""
    spill = tmp_path_factory.mktemp("spill") / "spill"
    return read_new_rows(model.recipe, esmm / "raw", model.encoder, model.source_columns, spill, keep=())


@pytest.fixture(scope="module")
def wanted(model: ExportedModel, rows: pa.Table) -> np.ndarray:
    return probabilities(model.predict(rows))


def probabilities(table: pa.Table) -> np.ndarray:
    return np.stack([column.to_numpy() for column in table.columns], axis=1)


def test_it_says_what_it_predicts_and_reads(model, rows):
    assert model.tasks == ("click", "like")
    assert tuple(model.features) == FEATURE_COLUMNS
    assert model.features == dict(zip(rows.schema.names, rows.schema.types, strict=True))
    assert not set(LABELS) & set(model.features)


def test_single_rows_equal_all_rows(model, rows, wanted):
    """With nulls, NaN, rare values, odd unicode, and lists that are empty, null or hold nulls."""
    assert np.ptp(wanted, axis=0).min() > 0.05
    assert wanted.dtype == np.float32
    for row in range(ROWS):
        one = {name: [value] for name, value in rows.slice(row, 1).to_pylist()[0].items()}
        np.testing.assert_allclose(probabilities(model.predict(one))[0], wanted[row], rtol=0, atol=1e-6)


def test_tables_batches_lists_and_arrays_are_alike(model, rows, wanted):
    some = rows.slice(0, ROWS)
    batch = some.combine_chunks().to_batches()[0]
    shapes = (
        some,
        batch,
        some.to_pydict(),
        {name: some[name] for name in some.column_names},
        {name: tuple(values) for name, values in some.to_pydict().items()},
        {**some.to_pydict(), "number of another length": [1]},
        dict(reversed(some.to_pydict().items())),
        some.append_column("p_click", pa.nulls(ROWS)),
    )
    for columns in shapes:
        found = model.predict(columns)
        assert found.schema == pa.schema([("p_click", pa.float32()), ("p_like", pa.float32())])
        np.testing.assert_allclose(probabilities(found), wanted[:ROWS], rtol=0, atol=1e-6)


def test_more_rows_than_go_through_at_once(model, rows, wanted):
    times = ROWS_AT_ONCE // len(rows) + 2
    found = probabilities(model.predict(pa.concat_tables([rows] * times)))
    np.testing.assert_allclose(found, np.tile(wanted, (times, 1)), rtol=0, atol=1e-6)


def test_no_rows(model, rows):
    for columns in (rows.slice(0, 0), {name: [] for name in rows.column_names}):
        assert model.predict(columns).to_pydict() == {"p_click": [], "p_like": []}


def test_conditional_probabilities(model, rows, wanted):
    found = model.predict(rows, conditional=True)
    assert found.column_names == ["p_click", "p_like", "p_like_given_click"]
    click, like, given = probabilities(found).T
    np.testing.assert_allclose(given, like / click, rtol=1e-5)
    np.testing.assert_allclose(np.stack([click, like], axis=1), wanted, rtol=0, atol=1e-6)


class Series:
    """A column as pandas has it: NaN is missing."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Any:
        return iter(self.values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


class Frame:
    """Columns as pandas has them: it is no Mapping."""

    def __init__(self, columns: dict[str, Series]) -> None:
        self._columns = columns

    def keys(self) -> list[str]:
        return list(self._columns)

    def __iter__(self) -> Any:
        return iter(self._columns)

    def __getitem__(self, name: str) -> Series:
        return self._columns[name]


def test_data_frames(model, rows, wanted):
    def as_series(column: pa.ChunkedArray) -> Series:
        values = np.empty(len(column), object)
        values[:] = [np.nan if value is None else value for value in column.to_pylist()]
        return Series(values)

    some = rows.slice(0, ROWS)
    frame = Frame({name: as_series(some[name]) for name in some.column_names})
    np.testing.assert_allclose(probabilities(model.predict(frame)), wanted[:ROWS], rtol=0, atol=1e-6)


MOMENT = dt.datetime(2024, 1, 1)
EQUAL: list[tuple[str, Any, Any]] = [
    ("item", [1, None, 3], np.array([1.0, np.nan, 3.0])),
    ("item", [1, 2, 3], np.array([1, 2, 3], np.uint8)),
    ("item", [1, 2, 3], range(1, 4)),
    ("item", [1, 2, 3], pa.chunked_array([[1], [], [2, 3]], pa.int32())),
    ("item", [1, -(2**62), None], [1.0, 2.5, float("nan")]),  # 2.5 is no whole number: unseen
    ("item", [None] * 3, pa.nulls(3)),
    ("unsigned", [0, 2**64 - 2, None], [0, -1, None]),  # so is −1 here
    ("user", ["u1", "", None], np.array(["u1", "", None], object)),
    ("user", ["u1", "u2", "u1"], np.array(["u1", "u2", "u1"])),
    ("user", ["u1", "u2", "u1"], pa.array(["u1", "u2", "u1"]).dictionary_encode()),
    ("user", ["u1", "u2", "u1"], pa.array(["u1", "u2", "u1"], pa.large_string())),
    ("double", [0.0, None, None], [-0.0, float("nan"), None]),
    ("double", [0.0, 1.5, 2.0], [0, 1.5, 2]),
    ("flag", [True, False, None], [1, 0, None]),
    ("day", [dt.date(2024, 2, 29), None, dt.date(1, 1, 1)], [dt.datetime(2024, 2, 29), None, dt.datetime(1, 1, 1)]),
    ("moment", [MOMENT, None, None], np.array([MOMENT, "NaT", "NaT"], "datetime64[ns]")),
    ("price", [D("1.50"), D("0.30"), None], [1.5, 0.3, float("nan")]),
    ("price", [D("1.00"), D("0.00"), D("-3.00")], [1, 0, -3]),
    ("price", [D("1.50"), D("1.50"), D("0.00")], [D("1.5"), D("1.500"), D("0E-5")]),
    ("bytes", [b"\0", b"", None], [bytearray(b"\0"), b"", None]),
    ("words", [["a", None], [], None], [("a", None), (), None]),
    ("items", [[1, 2], [], None], [np.array([1, 2]), np.array([], int), None]),
    ("items", [[1, 2], [], []], pa.array([[1, 2], [], None], pa.large_list(pa.int32()))),
]


@pytest.mark.parametrize(("name", "plain", "other"), EQUAL)
def test_values_in_other_types_are_the_same_values(model, rows, name, plain, other):
    base = rows.slice(0, 3).to_pydict()
    found, wanted = (probabilities(model.predict({**base, name: values})) for values in (other, plain))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    if any(value != plain[0] for value in plain):  # the column counts
        assert not np.allclose(wanted, probabilities(model.predict({**base, name: [plain[0]] * 3})), atol=1e-6)


REFUSED: list[tuple[str, Any, str]] = [
    ("user", [1, 2, 3], "int64, and the model was trained on string"),
    ("user", [b"a", b"b", b"c"], "binary, and the model was trained on string"),
    ("user", ["\ud800", "b", "c"], "surrogates not allowed"),
    ("item", ["1", "2", "3"], "string, and the model was trained on int64"),
    ("item", [[1], [2], [3]], "list<item: int64>, and the model was trained on int64"),
    ("item", [{"a": 1}] * 3, "struct<a: int64>"),
    ("item", [1, "a", None], "the model wants int64"),
    ("item", [2**70, 1, 2], "the model wants int64"),
    ("item", [1, 2], "has 2 rows"),
    ("item", 7, "type int; give a list"),
    ("item", None, "type NoneType; give a list"),
    ("item", {1, 2, 3}, "type set; give a list"),
    ("item", {1: 1, 2: 2, 3: 3}, "type dict; give a list"),
    ("item", (i for i in range(3)), "type generator; give a list"),
    ("item", np.zeros((3, 1)), "only handle 1-dimensional"),
    ("item", np.array(3), "1-dimensional"),
    ("user", "u1", "type str; give a list"),
    ("flag", ["a", "b", "c"], "trained on bool"),
    ("day", ["2024-02-29", None, None], "trained on date32"),
    ("day", [1, 2, 3], "trained on date32"),
    ("moment", [dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)] * 3, "trained on timestamp"),
    ("price", ["1.50", "2.00", "3.00"], "string, and the model was trained on decimal128"),
    ("place", ["a", "b", "c"], "string, and the model was trained on double"),
    ("bytes", ["a", "b", "c"], "string, and the model was trained on binary"),
    ("words", ["a", "b", "c"], "string, and the model was trained on list<l: string>"),
    ("words", [[["a"]], [[]], None], "list<item: list<item: string>>"),
    ("words", [[1], [], None], "list<item: int64>, and the model was trained on list<l: string>"),
    ("items", [["a"], [], None], "list<item: string>, and the model was trained on list<l: int64>"),
    ("items", [1, 2, 3], "int64, and the model was trained on list<l: int64>"),
]


@pytest.mark.parametrize(("name", "values", "words"), REFUSED)
def test_a_column_of_another_kind_is_one_line(model, rows, name, values, words):
    with pytest.raises(UserError) as error:
        model.predict({**rows.slice(0, 3).to_pydict(), name: values})
    line = str(error.value)
    assert "\n" not in line
    assert words in line
    assert line.startswith(f"column '{name}'")


def test_what_is_no_set_of_columns(model, rows):
    columns = rows.to_pydict()
    del columns["item"]
    with pytest.raises(UserError, match="no column 'item'; the model needs place, price, user, item"):
        model.predict(columns)
    with pytest.raises(UserError, match="column 'item' is there 2 times"):
        model.predict(rows.append_column("item", rows["item"]))
    for other in (None, 7, "abc", rows.to_pylist()):
        with pytest.raises(UserError, match="in place of columns; give a table, or lists by name"):
            model.predict(other)


def test_the_export_says_what_it_was_made_of(esmm, model):
    assert recmtl.load(str(esmm / "export")).version == model.version
    assert model.recipe.name == "kinds"
    assert model.source_columns["raw"]["clicked"] == "BIGINT"
    card = (esmm / "export" / "README.md").read_text()
    assert card.startswith("# kinds: esmm\n")
    assert all(f"| `{name}` |" in card for name in FEATURE_COLUMNS)
    assert pq.read_table(esmm / "export" / "vocab" / "item.parquet").num_rows > 0


def test_no_export_is_one_line(esmm, tmp_path):
    with pytest.raises(UserError, match="no such folder; give one that `recmtl export` wrote"):
        recmtl.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read .*is no export, or not a whole one"):
        recmtl.load(esmm / "run")
