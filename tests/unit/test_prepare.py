"""`prepare`: what it writes, that it is the same every time, and one message for everything that can be wrong."""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recmtl.data.dataset import Dataset
from recmtl.data.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.data.shards import ROW_GROUP_ROWS
from recmtl.errors import UserError

RECIPE = """
sql = '''
select *, filename as file
from raw
'''
group = "user"
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "previous"
table = "item"
[[feature]]
name = "tags"
kind = "list"
pooling = "mean"
[[feature]]
name = "price"
kind = "numeric"
transform = "log1p_standardize"
[[task]]
name = "click"
label = "clicked"
[split]
val = 0.2
test = 0.2
"""


def events(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    item = rng.integers(-5, 30, rows)
    return pa.table(
        {
            "user": pa.array([f"u{i}" for i in rng.integers(0, 20, rows)]),
            "item": pa.array(item, mask=rng.random(rows) < 0.1),
            "previous": pa.array(rng.integers(-5, 30, rows)),
            "tags": pa.array([[f"t{j}" for j in range(i % 4)] for i in range(rows)]),
            "price": pa.array(rng.gamma(1, 60, rows), mask=rng.random(rows) < 0.2),
            "clicked": pa.array(rng.integers(0, 2, rows)),
            "at": pa.array(rng.integers(0, 50, rows)),
            "number": pa.array(np.arange(rows)),
        }
    )


def run(
    folder: Path, table: pa.Table | list[pa.Table], text: str = RECIPE, out: str = "out", **options: Any
) -> Dataset:
    """Write `table` as the raw folder and prepare it."""
    raw = folder / "raw"
    raw.mkdir(exist_ok=True)
    for number, part in enumerate(table if isinstance(table, list) else [table]):
        pq.write_table(part, raw / f"{number}.parquet")
    (folder / "mine.toml").write_text(text)
    return prepare(load_recipe(str(folder / "mine.toml")), raw, folder / out, **options)


def read(folder: Path, split: str) -> pa.Table:
    files = sorted((folder / "out" / split).glob("part-*.parquet"))
    return pa.concat_tables(map(pq.read_table, files)) if files else pa.table({})


def read_all(folder: Path) -> pa.Table:
    return pa.concat_tables(part for split in ("train", "val", "test") if (part := read(folder, split)).num_rows)


def vocabulary(folder: Path, table: str) -> dict[Any, int]:
    columns = pq.read_table(folder / "out" / "vocab" / f"{table}.parquet").to_pydict()
    assert columns["id"] == list(range(1, len(columns["id"]) + 1))
    return dict(zip(columns["value"], columns["id"], strict=True))


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def only(kind: str, column: pa.Array, rest: str = "") -> tuple[pa.Table, str]:
    """Rows with one feature x of values `column`, and a recipe that trains on all but one of them in ten."""
    rows = len(column)
    table = pa.table({"x": column, "y": pa.array(np.arange(rows) % 2), "n": pa.array(np.arange(rows))})
    return table, (
        f'sql = "select * from raw"\n[[feature]]\nname = "x"\nkind = "{kind}"\n{rest}\n'
        '[[task]]\nname = "y"\nlabel = "y"\n[split]\nval = 0.0\ntest = 0.0\n'
    )


class TestOutput:
    def test_describes_itself(self, tmp_path: Path) -> None:
        dataset = run(tmp_path, events(1000))
        assert Dataset.load(tmp_path / "out") == dataset
        assert sum(dataset.rows.values()) == 1000
        assert [feature.name for feature in dataset.features] == ["user", "item", "previous", "tags", "price"]
        for split, count in dataset.rows.items():
            labels = read(tmp_path, split)["label_click"].to_numpy()
            assert len(labels) == count
            assert dataset.tasks[0].base_rate[split] == pytest.approx(labels.mean())

    def test_types_are_what_the_reader_expects(self, tmp_path: Path) -> None:
        run(tmp_path, events(300))
        schema = pq.read_schema(tmp_path / "out" / "train" / "part-00000.parquet")
        assert [str(schema.field(name).type) for name in ("user", "price", "label_click", "group")] == [
            *("int32", "float", "int8", "int64")
        ]
        assert schema.field("tags").type.value_type == pa.int32()
        assert not any(field.nullable for field in schema)

    def test_row_groups_are_exact(self, tmp_path: Path) -> None:
        rows = 3 * ROW_GROUP_ROWS + 100
        table, text = only("categorical", pa.array(np.arange(rows) % 7))
        run(tmp_path, table, text)
        metadata = pq.read_metadata(tmp_path / "out" / "train" / "part-00000.parquet")
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        assert sizes == [ROW_GROUP_ROWS] * 3 + [100]

    def test_rows_are_shuffled(self, tmp_path: Path) -> None:
        table, text = only("numeric", pa.array(np.arange(5000)))
        run(tmp_path, table, text)
        order = read(tmp_path, "train")["x"].to_numpy()
        assert sorted(order) == list(range(5000))
        assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05

    def test_empty_existing_folder_is_fine(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert run(tmp_path, events(50)).rows["train"] > 0

    def test_groups_are_the_users(self, tmp_path: Path) -> None:
        table = events(500)
        run(tmp_path, table)
        assert len(set(read_all(tmp_path)["group"].to_pylist())) == len(set(table["user"].to_pylist()))


class TestEncoding:
    def test_null_unseen_and_rare_are_zero(self, tmp_path: Path) -> None:
        values = ["a"] * 50 + ["b"] * 30 + [None] * 10 + ["rare"] * 2
        table, text = only("categorical", pa.array(values), 'table = "t"\n[[table]]\nname = "t"\nmin_count = 3')
        dataset = run(tmp_path, table, text)
        assert vocabulary(tmp_path, "t") == {"a": 1, "b": 2}
        assert dataset.table("t").rows == 3
        assert Counter(read_all(tmp_path)["x"].to_pylist()) == {0: 12, 1: 50, 2: 30}

    def test_negative_ids_and_nan_are_raw_values(self, tmp_path: Path) -> None:
        table, text = only("categorical", pa.array([-1.0] * 5 + [float("nan")] * 3 + [0.0] * 2))
        run(tmp_path, table, text)
        assert vocabulary(tmp_path, "x") == {-1.0: 1, 0.0: 2}
        assert Counter(read_all(tmp_path)["x"].to_pylist()) == {1: 5, 0: 3, 2: 2}

    @pytest.mark.parametrize(
        "values",
        [
            [True, False, None] * 4,
            [datetime.date(2024, 1, day) for day in range(1, 9)],
            [datetime.datetime(2024, 1, day, 1) for day in range(1, 9)],
            [2**40 + i for i in range(9)],
        ],
        ids=["boolean", "date", "timestamp", "large"],
    )
    def test_values_of_any_simple_type(self, tmp_path: Path, values: list[Any]) -> None:
        table, text = only("categorical", pa.array(values))
        run(tmp_path, table, text)
        numbers = vocabulary(tmp_path, "x")
        expected = Counter(numbers.get(value, 0) for value in values)
        assert Counter(read_all(tmp_path)["x"].to_pylist()) == expected

    def test_hashed_table_has_no_vocabulary(self, tmp_path: Path) -> None:
        rest = 'table = "t"\n[[table]]\nname = "t"\nhash_rows = 10\ndim = 4'
        values = [f"v{i}" for i in range(100)]
        table, text = only("categorical", pa.array([None, *values]), rest)
        dataset = run(tmp_path, table, text)
        assert (dataset.tables[0].rows, dataset.tables[0].hashed, dataset.tables[0].dim) == (10, True, 4)
        assert not list((tmp_path / "out" / "vocab").iterdir())
        # As docs/recipes.md says: an id can be computed anywhere, and is the same in other versions of the engine.
        digests = [hashlib.md5(value.encode()).digest() for value in values]
        expected = [1 + int.from_bytes(digest[8:], "little") % 9 for digest in digests]
        assert Counter(read_all(tmp_path)["x"].to_pylist()) == Counter([0, *expected])

    def test_lists_keep_their_order_and_lose_unknown_values(self, tmp_path: Path) -> None:
        lists = [["a", "b", "a", None, "rare"], ["b"], [], None, ["a", "a", "a", "b"]]
        table, text = only("list", pa.array(lists), 'table = "t"\nmax_length = 3\n[[table]]\nname = "t"\nmin_count = 2')
        run(tmp_path, table, text)
        assert vocabulary(tmp_path, "t") == {"a": 1, "b": 2}
        [feature] = Dataset.load(tmp_path / "out").features
        assert feature.mean_length == pytest.approx((3 + 1 + 0 + 0 + 3) / 5)
        assert sorted(read_all(tmp_path)["x"].to_pylist()) == [[], [], [1, 1, 1], [1, 2, 1], [2]]

    @pytest.mark.parametrize("table_keys", ["min_count = 1", "hash_rows = 1000"])
    def test_text_is_split_into_lists(self, tmp_path: Path, table_keys: str) -> None:
        rest = f'table = "t"\nseparator = ","\n[[table]]\nname = "t"\n{table_keys}'
        table, text = only("list", pa.array(["red, blue", "blue", "", None, " blue ,,blue"]), rest)
        run(tmp_path, table, text)
        lists = sorted(read_all(tmp_path)["x"].to_pylist(), key=len)
        (blue,) = lists[2]
        assert lists[:2] == [[], []]
        assert sorted(lists[3:]) == sorted([[blue, blue], lists[3] if lists[3] != [blue, blue] else lists[4]])
        assert any(len(set(ids)) == 2 for ids in lists[3:])

    def test_numbers_are_standardized_by_the_training_split(self, tmp_path: Path) -> None:
        dataset = run(tmp_path, events(2000))
        train = read(tmp_path, "train")["price"].to_numpy()
        (feature,) = dataset.numeric_features
        present = train[train != 0]
        assert present.mean() == pytest.approx(0, abs=1e-3)
        assert present.std() == pytest.approx(1, abs=1e-3)
        assert feature.transform == "log1p_standardize"
        assert 3 < feature.mean < 5

    @pytest.mark.parametrize(
        ("transform", "expected"),
        [("none", [-3, 0, 0, 0, 1]), ("log1p", [-np.log(4), 0, 0, 0, np.log(2)]), ("standardize", [-1, 0, 0, 0, 1])],
    )
    def test_missing_numbers_are_zero(self, tmp_path: Path, transform: str, expected: list[float]) -> None:
        values = pa.array([-3.0, None, float("nan"), float("inf"), 1.0])
        table, text = only("numeric", values, f'transform = "{transform}"')
        run(tmp_path, table, text)
        assert sorted(read_all(tmp_path)["x"].to_pylist()) == pytest.approx(expected)

    def test_vocabulary_is_of_the_training_rows_unless_told(self, tmp_path: Path) -> None:
        table = pa.table({"x": ["a", "b"] * 20, "y": [0, 1] * 20, "part": ["train", "test"] * 20})
        text = (
            'sql = "select * from raw"\n[[feature]]\nname = "x"\n[[task]]\nname = "y"\nlabel = "y"\n'
            '[split]\nby = "column"\ncolumn = "part"\n'
        )
        first = run(tmp_path, table, text)
        assert vocabulary(tmp_path, "x") == {"a": 1}
        assert first.tasks[0].base_rate == {"train": 0.0, "test": 1.0}
        second = run(tmp_path, table, text + 'vocab_from = "all"\n', out="all")
        assert second.tables[0].rows == 3
        assert first.fingerprint != second.fingerprint

    def test_oracle_is_kept_or_absent(self, tmp_path: Path) -> None:
        table, text = only("categorical", pa.array(["a"] * 10))
        text = text.replace('label = "y"', 'label = "y"\noracle = "p"')
        known = run(tmp_path, table.append_column("p", pa.array([0.25] * 10)), text)
        assert known.tasks[0].oracle
        assert read_all(tmp_path)["oracle_y"].to_pylist() == [0.25] * 10
        absent = run(tmp_path, table.append_column("p", pa.nulls(10, pa.float64())), text, out="absent")
        assert not absent.tasks[0].oracle


class TestSplits:
    def test_random_with_key_keeps_users_together(self, tmp_path: Path) -> None:
        run(tmp_path, events(1000), RECIPE + 'key = ["user"]\n')
        groups = [set(read(tmp_path, split)["group"].to_pylist()) for split in ("train", "val", "test")]
        assert not groups[0] & groups[1]
        assert not groups[1] & groups[2]
        assert not groups[0] & groups[2]

    def test_random_takes_about_the_fractions(self, tmp_path: Path) -> None:
        dataset = run(tmp_path, events(10_000))
        assert dataset.rows["val"] == pytest.approx(2000, abs=200)
        assert dataset.rows["test"] == pytest.approx(2000, abs=200)

    @pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.timestamp("us"), pa.date32()], ids=str)
    def test_time_takes_exactly_the_last_rows(self, tmp_path: Path, kind: pa.DataType) -> None:
        rows = 1000
        when = np.random.default_rng(0).integers(0, 20, rows)
        at = pa.array(when.astype(np.int32)).cast(pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
        table = pa.table({"x": when, "y": when % 2, "at": at, "n": np.arange(rows)})
        text = (
            'sql = "select * from raw"\n[[feature]]\nname = "x"\nkind = "numeric"\n[[task]]\nname = "y"\nlabel = "y"\n'
            '[split]\nby = "time"\ncolumn = "at"\nval = 0.1\ntest = 0.15\n'
        )
        assert run(tmp_path, table, text).rows == {"train": 750, "val": 100, "test": 150}
        train, val, test = (read(tmp_path, split)["x"].to_numpy() for split in ("train", "val", "test"))
        assert train.max() <= val.min()
        assert val.max() <= test.min()

    def test_column_with_a_fraction_of_train_for_val(self, tmp_path: Path) -> None:
        table, text = only("numeric", pa.array(np.arange(2000)))
        table = table.append_column("part", pa.array(["train"] * 1500 + ["test"] * 500))
        text = text.replace("val = 0.0\ntest = 0.0", 'by = "column"\ncolumn = "part"\nval = 0.2')
        dataset = run(tmp_path, table, text)
        assert dataset.rows["test"] == 500
        assert dataset.rows["val"] == pytest.approx(300, abs=60)
        assert read(tmp_path, "test")["x"].to_numpy().min() == 1500


class TestSame:
    def test_whatever_the_number_of_threads_and_the_folder(self, tmp_path: Path) -> None:
        table = events(6000)
        parts = [table.slice(start, 1000) for start in range(0, 6000, 1000)]
        for number, threads in enumerate((1, 2, 4)):
            folder = tmp_path / str(number) / ("deep" * number)
            folder.mkdir(parents=True)
            run(folder, parts, threads=threads)
        outs = [contents(path.parent) for path in sorted(tmp_path.rglob("dataset.json"))]
        assert len(outs) == 3
        assert outs[0] == outs[1] == outs[2]

    def test_fingerprint_follows_the_encoding(self, tmp_path: Path) -> None:
        first = run(tmp_path, events(500), out="a")
        weighted = run(
            tmp_path, events(500), RECIPE.replace('label = "clicked"', 'label = "clicked"\nweight = 2'), out="b"
        )
        pooled = run(tmp_path, events(500), RECIPE.replace('"mean"', '"sum"'), out="c")
        other = run(tmp_path, events(500, seed=1), out="d")
        assert first.fingerprint == weighted.fingerprint
        assert len({first.fingerprint, pooled.fingerprint, other.fingerprint}) == 3


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.none() | st.text("ab'\"\\☃ ", max_size=3),
            st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2),
            st.lists(st.none() | st.integers(0, 5), max_size=4),
        ),
        min_size=30,
        max_size=80,
    ),
    min_count=st.integers(1, 3),
)
def test_any_values_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, Any, list[Any]]], min_count: int
) -> None:
    """Ids are dense and in range, every row is in one split, and ids turn back into the values they stand for."""
    folder = tmp_path_factory.mktemp("any")
    text, number, items = zip(*rows, strict=True)
    table = pa.table(
        {
            "text": pa.array(text, pa.string()),
            "number": pa.array(number, pa.int64()),
            "items": pa.array(items, pa.list_(pa.int64())),
            "place": pa.array(np.arange(len(rows)), pa.float32()),
            "y": pa.array(np.arange(len(rows)) % 2),
        }
    )
    recipe = (
        'sql = "select * from raw"\n[[task]]\nname = "y"\nlabel = "y"\n'
        f'[[table]]\nname = "number"\nmin_count = {min_count}\n'
        '[[feature]]\nname = "text"\n[[feature]]\nname = "number"\n'
        '[[feature]]\nname = "items"\ntable = "number"\nkind = "list"\n[[feature]]\nname = "place"\nkind = "numeric"\n'
        "[split]\nval = 0.2\ntest = 0.2\n"
    )
    dataset = run(folder, table, recipe)
    parts = {split: read(folder, split).to_pydict() for split in ("train", "val", "test")}
    places = [place for part in parts.values() for place in part.get("place", [])]
    assert sorted(places) == list(range(len(rows)))

    known_text, known_number = vocabulary(folder, "text"), vocabulary(folder, "number")
    assert dataset.table("text").rows == len(known_text) + 1
    train = [int(place) for place in parts["train"]["place"]]
    seen = Counter(value for row in train for value in (number[row], *items[row]) if value is not None)
    assert set(known_number) == {value for value, count in seen.items() if count >= min_count}
    assert [seen[value] for value in known_number] == sorted((seen[value] for value in known_number), reverse=True)
    for part in parts.values():
        for i, place in enumerate(map(int, part.get("place", []))):
            assert part["text"][i] == known_text.get(text[place], 0)
            assert part["number"][i] == known_number.get(number[place], 0)
            assert part["items"][i] == [known_number[item] for item in items[place] if item in known_number]


COLUMNS = "columns are user, item, previous, tags, price, clicked, at, number, where, file"
BAD_RECIPES = [
    # what is wrong, text to replace, replacement, what the message names
    ("missing column", 'name = "price"', 'name = "prize"', ["'prize'", f"did you mean 'price'? Its {COLUMNS}"]),
    ("missing label", 'label = "clicked"', 'label = "bought"', ["[[task]] 'click'", "no column 'bought'"]),
    ("missing group", 'group = "user"', 'group = "person"', ["group", f"no column 'person'; its {COLUMNS}"]),
    ("missing key", "[split]", '[split]\nkey = ["person"]', ["[split]", "key", "no column 'person'"]),
    ("sql syntax", "from raw", "from from raw", ["sql", "syntax error"]),
    ("sql column", "from raw", "from raw where\nbogus = 1", ["sql, line 3", "bogus"]),
    ("sql table", "from raw", "from logs", ["sql, line 2", "logs"]),
    ("sql two", "from raw", "from raw; select 1", ["sql", "one select"]),
    ("sql kind", "select *, filename as file\nfrom raw", "create table t (i int)", ["sql", "one select"]),
    ("sql fails on data", "from raw", 'from raw where cast("user" as int) > 0', ["sql", "Conversion Error"]),
    ("sql empty", "from raw", "from raw where price < -1", ["sql yields no rows"]),
    ("text as number", 'name = "price"', 'name = "price"\ncolumn = "user"', ["'price'", "VARCHAR", "needs a number"]),
    ("list as id", 'name = "item"', 'name = "item"\ncolumn = "tags"', ["'item'", "kind = 'list'"]),
    ("id as list", 'name = "tags"', 'name = "tags"\ncolumn = "user"', ["'tags'", "separator"]),
    ("types in one table", 'name = "previous"', 'name = "previous"\ncolumn = "user"', ["'item'", "differ in type"]),
    ("text as label", 'label = "clicked"', 'label = "file"', ["[[task]] 'click'", "'file' is VARCHAR"]),
    ("null time", "[split]", '[split]\nby = "time"\ncolumn = "item"', ["[split]", "'item' is null"]),
    ("no known split", "[split]\nval = 0.2\ntest = 0.2", '[split]\nby = "column"\ncolumn = "user"', ["'u", "train"]),
    (
        "no training rows",
        "[split]\nval = 0.2\ntest = 0.2",
        '[split]\nby = "column"\ncolumn = "where"',
        ["no row is left"],
    ),
    ("no file", "[[feature]]", '[sources]\nraw = "logs/*.parquet"\n[[feature]]', ["logs/*.parquet", "no file matches"]),
]


def assert_refused(folder: Path, names: list[str], table: pa.Table, text: str = RECIPE, **options: Any) -> None:
    """Preparing must end in one line with all `names` in it, and leave nothing behind."""
    with pytest.raises(UserError) as caught:
        run(folder, table, text, **options)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message
    assert sorted(path.name for path in folder.iterdir()) == ["mine.toml", "raw"]


class TestMistakes:
    @pytest.mark.parametrize(
        ("old", "new", "names"), [row[1:] for row in BAD_RECIPES], ids=[row[0] for row in BAD_RECIPES]
    )
    def test_recipe_that_does_not_fit(self, tmp_path: Path, old: str, new: str, names: list[str]) -> None:
        assert old in RECIPE
        table = events(60).append_column("where", pa.array(["test"] * 60))
        assert_refused(tmp_path, names, table, RECIPE.replace(old, new, 1))

    @pytest.mark.parametrize(("bad", "shown"), [(2.0, "2.0"), (None, "null"), (float("nan"), "nan"), (0.5, "0.5")])
    def test_label_that_is_not_0_or_1(self, tmp_path: Path, bad: float | None, shown: str) -> None:
        table, text = only("categorical", pa.array(["a"] * 20))
        labels = pa.array([0.0] * 12 + [bad] + [1.0] * 7, pa.float64())
        table = table.set_column(1, "y", labels)
        assert_refused(tmp_path, ["'y'", f"is {shown} at 0.parquet, row 12"], table, text)

    def test_computed_label(self, tmp_path: Path) -> None:
        text = RECIPE.replace("filename as file", "clicked + 1 as twice").replace(
            'label = "clicked"', 'label = "twice"'
        )
        assert_refused(tmp_path, ["'twice' is 2", "must be 0 or 1"], events(50), text)

    def test_oracle_with_gaps(self, tmp_path: Path) -> None:
        text = RECIPE.replace('label = "clicked"', 'label = "clicked"\noracle = "p"')
        table = events(50).append_column("p", pa.array([0.5] * 49 + [None]))
        assert_refused(tmp_path, ["oracle", "'p'", "every row"], table, text)

    def test_truncated_file(self, tmp_path: Path) -> None:
        (tmp_path / "raw").mkdir()
        pq.write_table(events(5000, seed=3), tmp_path / "raw" / "cut.parquet")
        whole = (tmp_path / "raw" / "cut.parquet").read_bytes()
        (tmp_path / "raw" / "cut.parquet").write_bytes(whole[: len(whole) // 2])
        assert_refused(tmp_path, ["cut.parquet", "not readable as Parquet"], events(50))

    def test_damaged_pages(self, tmp_path: Path) -> None:
        (tmp_path / "raw").mkdir()
        path = tmp_path / "raw" / "bits.parquet"
        pq.write_table(events(5000, seed=3), path, compression="snappy")
        whole = bytearray(path.read_bytes())
        whole[4 : len(whole) // 2] = b"\xff" * (len(whole) // 2 - 4)
        path.write_bytes(whole)
        assert_refused(tmp_path, ["bits.parquet", "not readable as Parquet"], events(50))

    def test_empty_folder_and_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "raw").mkdir()
        recipe = load_recipe("census")
        with pytest.raises(UserError, match=r"no file matches train\.parquet or test\.parquet"):
            prepare(recipe, tmp_path / "raw", tmp_path / "out")
        with pytest.raises(UserError, match="no such folder"):
            prepare(recipe, tmp_path / "nowhere", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_out_is_not_empty(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").write_text("mine")
        with pytest.raises(UserError, match="exists and is not empty"):
            run(tmp_path, events(50))
        assert (tmp_path / "out" / "precious").read_text() == "mine"

    @pytest.mark.parametrize(
        ("options", "name"),
        [({"memory_limit": "lots"}, "'lots'"), ({"memory_limit": "4"}, "'4'"), ({"threads": 0}, "--threads: 0")],
    )
    def test_bad_flags(self, tmp_path: Path, options: dict[str, Any], name: str) -> None:
        assert_refused(tmp_path, [name], events(50), **options)

    def test_memory_limit_too_small(self, tmp_path: Path) -> None:
        assert_refused(tmp_path, ["--memory-limit 1MB"], events(50), memory_limit="1MB")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_a_signal_leaves_nothing_in_the_way(self, tmp_path: Path, number: signal.Signals) -> None:
        """In the middle of a query. What SIGKILL leaves is removed at the next start."""
        slow = RECIPE.replace("from raw", "from raw, range(3000000000) where hash(number, range) = 1")
        (tmp_path / "mine.toml").write_text(slow)
        (tmp_path / "raw").mkdir()
        pq.write_table(events(50), tmp_path / "raw" / "0.parquet")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "recmtl", "prepare", "mine.toml", "raw", "out", "--threads", "1"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob(".out.tmp/data")) and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.3)
            with pytest.raises(UserError, match=f"out: in use by process {process.pid} on"):
                prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path / "raw", tmp_path / "out")
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
        expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
        assert process.returncode == expected[number]
        assert said == ("interrupted\n" if number == signal.SIGINT else "")
        if number == signal.SIGKILL:
            assert (tmp_path / ".out.tmp" / "data").is_dir()
            (tmp_path / "mine.toml").write_text(RECIPE)
            prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path / "raw", tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "raw"]


class TestSources:
    def test_optional_source_joins_as_nulls(self, tmp_path: Path) -> None:
        text = RECIPE.replace(
            "select *, filename as file\nfrom raw", "select raw.*, p from raw left join extra using (number)"
        )
        text = text.replace('label = "clicked"', 'label = "clicked"\noracle = "p"')
        text += '[sources]\nraw = "*.parquet"\n[sources.extra]\nfiles = "extra/*.parquet"\noptional = true\n'
        text += 'columns = {number = "BIGINT", p = "DOUBLE"}\n'
        assert not run(tmp_path, events(100), text).tasks[0].oracle
        (tmp_path / "raw" / "extra").mkdir()
        extra = pa.table({"number": np.arange(100), "p": np.full(100, 0.5)})
        pq.write_table(extra, tmp_path / "raw" / "extra" / "0.parquet")
        assert run(tmp_path, events(100), text, out="known").tasks[0].oracle

    def test_file_names_are_relative_and_globs_add_up(self, tmp_path: Path) -> None:
        (tmp_path / "raw" / "202301").mkdir(parents=True)
        pq.write_table(events(40, seed=1), tmp_path / "raw" / "202301" / "x.parquet")
        text = RECIPE.replace('name = "user"', 'name = "user"\n[[feature]]\nname = "file"', 1)
        run(tmp_path, events(60), text + 'vocab_from = "all"\n[sources]\nraw = ["20*/*.parquet", "*.parquet"]\n')
        assert vocabulary(tmp_path, "file") == {"0.parquet": 1, "202301/x.parquet": 2}


def merrec_events() -> pa.Table:
    """Two sequences of 10 and 8 events, and one too short; products are numbered by their place."""
    lengths = (10, 8, 5)
    place = np.concatenate([np.arange(length) for length in lengths])
    sequence = np.repeat(np.arange(3), lengths)
    rows = len(place)
    ids = {
        f"{name}_id": np.ones(rows, int) for name in ("c0", "c1", "c2", "brand", "size", "item_condition", "shipper")
    }
    return pa.table(
        {
            "user_id": sequence,
            "sequence_id": [f"s{i}" for i in sequence],
            "session_id": ["a"] * rows,
            # Two events of one second: their order in the file decides.
            "stime": pa.array((place // 2) * 1_000_000, pa.timestamp("us")),
            "sequence_length": np.repeat(lengths, lengths),
            "event_id": [("item_view", "item_like", "buy_comp")[i % 3] for i in place],
            "product_id": [f"p{s}-{i}" for s, i in zip(sequence, place, strict=True)],
            "color": pa.nulls(rows, pa.string()),
            **ids,
        }
    )


@pytest.mark.parametrize("with_truth", [False, True])
def test_merrec_rows(tmp_path: Path, with_truth: bool) -> None:
    month = tmp_path / "raw" / "20230501"
    month.mkdir(parents=True)
    table = merrec_events()
    pq.write_table(table, month / "000000000000.parquet")
    if with_truth:
        (tmp_path / "raw" / "truth" / "20230501").mkdir(parents=True)
        rows = np.arange(table.num_rows) / 100
        truth = pa.table({"view": rows, "like": 1 - rows})
        pq.write_table(truth, tmp_path / "raw" / "truth" / "20230501" / "000000000000.parquet")
    text = 'extends = "merrec"\n[split]\nval = 0.0\ntest = 0.0\n'
    (tmp_path / "mine.toml").write_text(text)
    dataset = prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path / "raw", tmp_path / "out")
    assert dataset.rows["train"] == 3 + 1
    product = {number: value for value, number in vocabulary(tmp_path, "product").items()}
    rows = read_all(tmp_path).to_pylist()
    for row in rows:
        sequence, place = map(int, product[row["product_id"]].removeprefix("p").split("-"))
        before = [product[row[f"hist_{i}"]] for i in range(1, 8)]
        assert before == [f"p{sequence}-{place - 8 + i}" for i in range(1, 8)]
        assert (row["label_view"], row["label_like"]) == (int(place % 3 == 0), int(place % 3 == 1))
        if with_truth:
            assert row["oracle_view"] == pytest.approx((place + 10 * sequence) / 100)
    assert [task.oracle for task in dataset.tasks] == [with_truth, with_truth]


def test_one_month_is_a_raw_folder(tmp_path: Path) -> None:
    pq.write_table(merrec_events(), tmp_path / "0.parquet")
    assert sum(prepare(load_recipe("merrec"), tmp_path, tmp_path / "out").rows.values()) == 4


def test_the_documented_recipe_works(tmp_path: Path) -> None:
    guide = Path(__file__).parents[2] / "docs" / "recipes.md"
    (tmp_path / "shop.toml").write_text(guide.read_text().split("```toml\n")[1].split("```")[0])
    raw = tmp_path / "raw"
    (raw / "events").mkdir(parents=True)
    rng = np.random.default_rng(0)
    shop = {
        "user": rng.integers(0, 9, 200),
        "item": rng.integers(0, 40, 200),
        "at": pa.array(rng.integers(0, 10**12, 200), pa.timestamp("us")),
        "kind": rng.choice(["view", "click", "buy"], 200),
    }
    pq.write_table(pa.table(shop), raw / "events" / "2024-01.parquet")
    items = {"item": np.arange(30), "brand": ["a", "b"] * 15, "tags": ["red,cotton"] * 30, "price": np.ones(30)}
    pq.write_table(pa.table(items), raw / "items.parquet")
    dataset = prepare(load_recipe(str(tmp_path / "shop.toml")), raw, tmp_path / "out")
    assert dataset.rows == {"train": 160, "val": 20, "test": 20}
    assert [table.rows for table in dataset.tables if table.name in ("brand", "tags")] == [3, 3]


@pytest.mark.parametrize(("name", "rows"), [("census", 299_285), ("kuairand", 228_329)])
def test_real_data(real_data: Path, tmp_path: Path, name: str, rows: int) -> None:
    dataset = prepare(load_recipe(name), real_data / name, tmp_path / "out")
    assert sum(dataset.rows.values()) == rows
    if name == "census":
        assert dataset.rows["test"] == 99_762
        assert dataset.tasks[0].base_rate["train"] == pytest.approx(0.062, abs=0.001)
    else:
        assert dataset.rows["test"] == round(0.15 * rows)
        assert dataset.tasks[0].base_rate["train"] == pytest.approx(0.44, abs=0.01)


def test_parents_hold_in_real_data(real_data: Path) -> None:
    """A parent is there where fewer than one in a hundred of a task's positive rows contradict it, and only there."""
    tasks = {task.name: task for task in load_recipe("kuairand").tasks}
    log = pq.read_table(real_data / "kuairand" / "log.parquet")
    labels = {name: log[task.label].to_numpy().astype(bool) for name, task in tasks.items()}
    for name, task in tasks.items():
        for other in tasks.keys() - {name}:
            without = (labels[name] & ~labels[other]).sum() / labels[name].sum()
            assert (without < 0.01) == (task.parent == other), (name, other, without)
