"""Which changes make data another one, what is said of them, and what leaves both fingerprints as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import RECIPE, events, run

from recmtl.data.difference import data_difference, encoding_difference
from recmtl.data.prepare.content import ContentDigests
from recmtl.errors import UserError
from recmtl.schema import Dataset, Feature, Table, Task

ROWS = 500
BASE = RECIPE + 'key = ["number"]\n'
"""The split depends on the rows' numbers alone: a changed value moves no row."""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return run(tmp_path_factory.mktemp("first"), events(ROWS), BASE)


def fingerprints(dataset: Dataset) -> tuple[str, str]:
    return dataset.encoding_fingerprint, dataset.data_fingerprint


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 4}, {"threads": 2, "memory_limit": "600MB"}], ids=str)
def test_the_same_raw_files_give_the_same_fingerprints(first: Dataset, tmp_path: Path, options: dict) -> None:
    folder = tmp_path / "another" / "place"
    folder.mkdir(parents=True)
    again = run(folder, events(ROWS), BASE, out="other name", **options)
    assert fingerprints(again) == fingerprints(first)
    assert fingerprints(Dataset.load(folder / "other name")) == fingerprints(first)
    assert data_difference(first, again) is None
    assert encoding_difference(first, again) is None


def test_raw_files_cut_otherwise_hold_the_same_data(tmp_path: Path) -> None:
    """Where the query does not yield the names of the files."""
    text = BASE.replace("select *, filename as file", "select * exclude (filename, file_row_number)")
    table = events(ROWS)
    one = run(tmp_path, table, text, out="one")
    two = run(tmp_path, [table.slice(0, 100), table.slice(100)], text, out="two")
    assert fingerprints(one) == fingerprints(two)
    assert (len(one.sources["raw"]), two.sources["raw"]) == (1, {"0.parquet": 100, "1.parquet": 400})


def changed(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    """Another value in one row of the raw file."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        assert values[row] != value
        values[row] = value
        return table.set_column(table.column_names.index(column), column, pa.array(values, table[column].type))

    return change


def label_of(row: int) -> int:
    return 1 - events(ROWS)["clicked"][row].as_py()


def with_label(line: str) -> str:
    return BASE.replace('label = "clicked"', f'label = "clicked"\n{line}')


def of_text(table: pa.Table) -> pa.Table:
    place = table.column_names.index("item")
    for column in ("item", "previous"):
        place = table.column_names.index(column)
        table = table.set_column(place, column, table[column].cast(pa.string()))
    return table


OTHER_LABEL = BASE.replace("select *,", "select *, number % 2 as odd,").replace('"clicked"', '"odd"')
TABLE = '[[table]]\nname = "user"\n{}\n[[task]]'
SAME = lambda table: table  # noqa: E731
CHANGES: dict[str, tuple[Callable[[pa.Table], pa.Table], str, bool, str]] = {
    # name: change of the raw rows, recipe, whether the encoding is another one, words of the difference
    "a label": (changed("clicked", 3, label_of(3)), BASE, False, "differ"),
    "a number": (changed("price", 5, 17.25), BASE.replace("log1p_standardize", "log1p"), False, "differ"),
    "a user": (changed("user", 6, "a new one"), BASE, True, "table 'user'"),
    "one row fewer": (lambda table: table.slice(1), BASE, True, "0.parquet of source 'raw' had 500 rows, now 499"),
    "a weight": (SAME, with_label("weight = 2"), False, "task 'click': weight 1.0, now 2.0"),
    "the label's column": (SAME, OTHER_LABEL, False, "label clicked, now odd (the recipe's sql is another)"),
    "the split's fractions": (SAME, BASE.replace("test = 0.2", "test = 0.3"), True, "table"),
    "the split's key": (SAME, BASE.replace('"number"', '"number", "at"'), True, "table"),
    "the group": (SAME, BASE.replace('group = "user"', 'group = "item"'), False, "groups in split train differ"),
    "no group": (SAME, BASE.replace('group = "user"', ""), False, "the group of rows"),
    "pooling": (SAME, BASE.replace('"mean"', '"sum"'), True, "feature 'tags': pooling mean, now sum"),
    "a longest list": (SAME, BASE.replace('pooling = "mean"', 'pooling = "mean"\nmax_length = 9'), True, "max_length"),
    "transform": (SAME, BASE.replace("log1p_standardize", "log1p"), True, "transform log1p_standardize, now log1p"),
    "dimension": (
        SAME,
        BASE.replace("[[task]]", TABLE.format("dim = 8")),
        True,
        "dim none, now 8",
    ),
    "a hashed table": (
        SAME,
        BASE.replace("[[task]]", TABLE.format("hash_rows = 90")),
        True,
        "user",
    ),
    "text for numbers": (of_text, BASE, True, "table 'item': value_type BIGINT, now VARCHAR"),
    "a feature fewer": (SAME, BASE.replace('[[feature]]\nname = "user"\n', ""), True, "table 'user' is gone"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_data(first: Dataset, tmp_path: Path, name: str) -> None:
    change, text, encoding_too, words = CHANGES[name]
    if name == "a number":
        first = run(tmp_path, events(ROWS), text, out="first")
    other = run(tmp_path, change(events(ROWS)), text, out="other")
    assert other.data_fingerprint != first.data_fingerprint
    assert (other.encoding_fingerprint != first.encoding_fingerprint) == encoding_too
    assert (encoding_difference(first, other) is not None) == encoding_too
    difference = data_difference(first, other)
    assert difference is not None
    assert words in difference
    assert "\n" not in difference


def test_a_description_and_a_comment_in_the_query_change_nothing(first: Dataset, tmp_path: Path) -> None:
    text = 'description = "Another word"\n' + BASE.replace("from raw", "from raw -- all of it")
    assert fingerprints(run(tmp_path, events(ROWS), text)) == fingerprints(first)


def test_hashed_values_tell_their_type(tmp_path: Path) -> None:
    """There is no vocabulary to compare, yet a model of numbers must not read texts in silence."""
    text = (
        'sql = "select * from raw"\n[[table]]\nname = "item"\nhash_rows = 50\n[[feature]]\nname = "item"\n'
        '[[task]]\nname = "click"\nlabel = "clicked"\n[split]\nkey = ["number"]\n'
    )
    texts = run(tmp_path, of_text(events(ROWS)), text, out="texts")
    numbers = run(tmp_path, events(ROWS), text)
    assert encoding_difference(numbers, texts) == "the encoding of table 'item': value_type BIGINT, now VARCHAR"
    cast = text.replace("*", "* replace (item::decimal(9,{}) as item)")
    tenths, hundredths = (run(tmp_path, events(ROWS), cast.format(d), out=f"decimals{d}") for d in (1, 2))
    difference = "the encoding of table 'item': value_type DECIMAL(9,1), now DECIMAL(9,2)"
    assert encoding_difference(tenths, hundredths) == difference


FOLDER = Dataset(
    "d",
    {"train": 10, "val": 2, "test": 2},
    (Table("a", 5), Table("b", 7)),
    (Feature("x", table="a"), Feature("y", "list", "b", mean_length=2.0), Feature("z", "numeric")),
    (Task("view"), Task("like", parent="view", base_rate={"train": 0.5})),
    content={"train": {"z": "1", "label_view": "2", "label_like": "3", "group": "4"}},
)


def with_content(**changes: str) -> Dataset:
    return replace(FOLDER, content={"train": {**FOLDER.content["train"], **changes}})


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (replace(FOLDER, tasks=(FOLDER.tasks[0], replace(FOLDER.tasks[1], parent=None))), "parent view, now none"),
        (replace(FOLDER, tasks=(FOLDER.tasks[0], replace(FOLDER.tasks[1], relation="given_not"))), "now given_not"),
        (replace(FOLDER, tasks=FOLDER.tasks[:1]), "task 'like' is gone"),
        (replace(FOLDER, tasks=(*FOLDER.tasks, Task("buy"))), "task 'buy' is new"),
        (replace(FOLDER, tasks=FOLDER.tasks[::-1]), "task 'like' is in another place"),
        (replace(FOLDER, tables=FOLDER.tables[::-1]), "the encoding of table 'b' is in another place"),
        (replace(FOLDER, rows={**FOLDER.rows, "val": 3}), "rows in val 2, now 3"),
        (replace(FOLDER, split={"by": "time"}), "[split]: by none, now time"),
        (with_content(label_like="other"), "labels of task 'like' in split train differ"),
        (with_content(group="other"), "groups in split train differ"),
        (with_content(z="other"), "values of column 'z' in split train differ"),
        (with_content(label_like="other", label_view="other", group="other", z="other"), "rows of split train differ"),
    ],
)
def test_differences_are_named(other: Dataset, difference: str) -> None:
    found = data_difference(FOLDER, other)
    assert found is not None
    assert difference in found


def some(entries: list) -> st.SearchStrategy[tuple]:
    """Some of them, each name once, in any order."""
    return st.lists(st.sampled_from(entries), unique_by=lambda entry: entry.name, min_size=1).map(tuple)


FIELDS: dict[str, st.SearchStrategy] = {
    "rows": st.fixed_dictionaries({"train": st.integers(1, 2)}),
    "tables": some([*FOLDER.tables, Table("a", 5, vocabulary="1"), Table("a", 5, value_type="DATE")]),
    "features": some([*FOLDER.features, *(Feature("x", "list", "a", separator=mark) for mark in ("", ","))]),
    "tasks": some([Task("v"), Task("v", weight=0.5), Task("v", oracle=True), Task("w"), Task("w", parent="v")]),
    "group": st.booleans(),
    "split": st.sampled_from([{}, {"by": "random"}, {"by": "time", "column": "t"}]),
    "content": st.dictionaries(
        st.sampled_from(["train", "test"]),
        st.dictionaries(st.sampled_from(["x", "label_v"]), st.sampled_from("01"), min_size=1),
    ),
}


@settings(max_examples=60, deadline=None)
@given(one=st.builds(Dataset, st.just("d"), **FIELDS), field=st.sampled_from(list(FIELDS)), data=st.data())
def test_every_difference_has_a_name(one: Dataset, field: str, data: st.DataObject) -> None:
    """A phrase of its own wherever the fingerprints differ, none where they are equal."""
    other = replace(one, **{field: data.draw(FIELDS[field])})
    found, encoding = data_difference(one, other), encoding_difference(one, other)
    assert (found is None) == (one.data_fingerprint == other.data_fingerprint) == (one == other)
    same_encoding = (one.tables, one.features) == (other.tables, other.features)
    assert (encoding is None) == (one.encoding_fingerprint == other.encoding_fingerprint) == same_encoding
    assert found != "the data differs"
    assert encoding != "the encoding differs"


def test_what_may_be_the_reason_is_said() -> None:
    trained = replace(FOLDER, sql="1", sources={"raw": {"a.parquet": 10, "b.parquet": 2000, "c.parquet": 1}})
    given = replace(FOLDER, rows={**FOLDER.rows, "train": 9}, sql="2", sources={"raw": {"a.parquet": 10}})
    file = "file b.parquet of source 'raw' had 2,000 rows, now no rows"
    assert data_difference(trained, given) == f"rows in train 10, now 9 (the recipe's sql is another, {file})"
    assert data_difference(trained, replace(given, sql="1")) == f"rows in train 10, now 9 ({file})"
    assert data_difference(trained, replace(trained, rows=given.rows)) == "rows in train 10, now 9"


def test_figures_for_people_are_no_difference() -> None:
    x, y, z = FOLDER.features
    other = replace(
        FOLDER,
        name="e",
        features=(x, replace(y, mean_length=3.0), z),
        tasks=(FOLDER.tasks[0], replace(FOLDER.tasks[1], base_rate={"train": 0.25})),
        sql="another",
        sources={"raw": {"0.parquet": 3}},
    )
    assert fingerprints(other) == fingerprints(FOLDER)


def test_a_file_that_was_edited_is_refused(tmp_path: Path) -> None:
    FOLDER.save(tmp_path)
    path = tmp_path / "dataset.json"
    assert Dataset.load(tmp_path) == FOLDER
    fields = json.loads(path.read_text())
    fields["tasks"][1]["weight"] = 3.0
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"dataset\.json: changed after it was written; prepare the data again"):
        Dataset.load(tmp_path)


# --- digests of columns ----------------------------------------------------------------------------------------

LAYOUT = pa.schema([("id", pa.int32()), ("tags", pa.list_(pa.int32())), ("x", pa.float32()), ("group", pa.int64())])
ROW = st.tuples(
    st.integers(0, 2**31 - 1),
    st.lists(st.integers(0, 9), max_size=3),
    st.floats(width=32, allow_nan=False),
    st.integers(-(2**63), 2**63 - 1),
)


def table_of(rows: list[tuple]) -> pa.Table:
    columns = zip(zip(*rows, strict=True), LAYOUT.types, strict=True)
    return pa.Table.from_arrays([pa.array(values, kind) for values, kind in columns], schema=LAYOUT)


def digests(*parts: pa.Table) -> dict[str, str]:
    content = ContentDigests()
    for part in parts:
        content.add("train", part)
    return content.hexdigests()["train"]


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, min_size=2, max_size=12), data=st.data())
def test_digests_follow_the_values_alone(rows: list[tuple], data: st.DataObject) -> None:
    """Not the batches they come in; and every value, its place and the ends of lists count."""
    whole = table_of(rows)
    cut = data.draw(st.integers(0, len(rows)))
    expected = digests(whole)
    assert set(expected) == {"id", "tags", "tags.lengths", "x", "group"}
    assert digests(whole.slice(0, cut), whole.slice(cut)) == expected
    assert digests(pa.concat_tables([table_of([row]) for row in rows])) == expected
    other = data.draw(st.lists(ROW, min_size=len(rows), max_size=len(rows)))
    for place, name in enumerate(LAYOUT.names):
        before, now = ([repr(row[place]) for row in some] for some in (rows, other))  # 0.0 and −0.0 differ
        found = digests(table_of(other))
        same = all(found[key] == expected[key] for key in (name, f"{name}.lengths") if key in expected)
        assert same == (before == now)


def test_a_digest_is_defined_for_good() -> None:
    """BLAKE2b of 16 bytes over little-endian values, as any other program computes it."""
    found = digests(table_of([(1, [7], 0.5, -1), (258, [], -2.0, 3)]))
    assert found["id"] == hex_digest(np.array([1, 258], "<i4"))
    assert found["tags"] == hex_digest(np.array([7], "<i4"))
    assert found["tags.lengths"] == hex_digest(np.array([1, 0], "<i4"))
    assert found["x"] == hex_digest(np.array([0.5, -2.0], "<f4"))
    assert found["group"] == hex_digest(np.array([-1, 3], "<i8"))
    assert hex_digest(np.array([], "<i4")) == "cae66941d9efbd404e4d88758ea67670"


def hex_digest(values: np.ndarray) -> str:
    return hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()
