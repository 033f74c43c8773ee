"""`prepare`: what it writes, how values are encoded and rows split, and that it is the same every time."""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from murmur import murmur64a
from prepared import RECIPE, events, only, read, read_all, run, vocabulary

from recmtl.encoding.hashing import hash_texts
from recmtl.schema import FIRST, MISSING, NO_USER, ROW_GROUP_ROWS, UNSEEN, Dataset


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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

    def test_rows_without_a_user_are_of_no_group(self, tmp_path: Path) -> None:
        for number, users in enumerate((["a", None, "", None, "a"], [1.0, None, 0.0, float("nan"), 1.0])):
            table, text = only("numeric", pa.array([0.0, 1.0, 2.0, 3.0, 4.0]))
            folder = tmp_path / str(number)
            folder.mkdir()
            run(folder, table.append_column("u", pa.array(users)), 'group = "u"\n' + text)
            rows = read_all(folder)
            group = dict(zip(rows["x"].to_pylist(), rows["group"].to_pylist(), strict=True))
            assert (group[1], group[3]) == (NO_USER, NO_USER)
            assert min(group[0], group[2]) >= 0
            assert group[0] == group[4] != group[2]

    def test_users_of_any_simple_type(self, tmp_path: Path) -> None:
        """NaN is no user, and -0.0 is the same one as 0.0."""
        table, text = only("categorical", pa.array([1] * 8))
        users = pa.array([0.0, -0.0, 1.5, 1.5, float("nan"), None, 0.0, 2.0])
        run(tmp_path, table.append_column("g", users), f'group = "g"\n{text}')
        assert sorted(Counter(read_all(tmp_path)["group"].to_pylist()).values()) == [1, 2, 2, 3]
        assert Counter(read_all(tmp_path)["group"].to_pylist())[NO_USER] == 2

    def test_users_of_bytes(self, tmp_path: Path) -> None:
        table, text = only("categorical", pa.array([1] * 4))
        run(tmp_path, table.append_column("g", pa.array([b"\xff", b"\xff", b"\xfe", None])), f'group = "g"\n{text}')
        assert sorted(Counter(read_all(tmp_path)["group"].to_pylist()).values()) == [1, 1, 2]


class TestEncoding:
    def test_what_counts_may_be_one_feature(self, tmp_path: Path) -> None:
        """An item seen in one row has no id of its own, though two histories hold it."""
        table = pa.table({"item": ["a", "a", "b", None], "past": [["b"], ["b", "a"], [], ["c"]], "y": [0, 1, 0, 1]})
        text = (
            'sql = "select * from raw"\n[[table]]\nname = "item"\nmin_count = 2\n{}\n[[feature]]\nname = "item"\n'
            '[[feature]]\nname = "past"\nkind = "list"\ntable = "item"\n[[task]]\nname = "y"\nlabel = "y"\n'
            "[split]\nval = 0.0\ntest = 0.0\n"
        )
        run(tmp_path, table, text.format(""))
        assert vocabulary(tmp_path, "item") == {"a": 2, "b": 3}
        (tmp_path / "out").rename(tmp_path / "all")
        run(tmp_path, table, text.format('count_from = "item"'))
        assert vocabulary(tmp_path, "item") == {"a": 2}
        assert sorted(read_all(tmp_path)["past"].to_pylist()) == [[], [UNSEEN], [UNSEEN], [UNSEEN, 2]]

    def test_parts_of_text_lose_blanks_of_every_kind(self, tmp_path: Path) -> None:
        texts = ["a,\tb", "a\r\n, b", "\u3000a\xa0,\u2003b\u2028", "\v\f\x85a, \t ,b"]
        table, text = only("list", pa.array(texts), 'separator = ","')
        run(tmp_path, table, text)
        assert sorted(vocabulary(tmp_path, "x")) == ["a", "b"]
        assert {tuple(ids) for ids in read_all(tmp_path)["x"].to_pylist()} == {(2, 3)}

    def test_null_is_zero_and_rare_is_one(self, tmp_path: Path) -> None:
        values = ["a"] * 50 + ["b"] * 30 + [None] * 10 + ["rare"] * 2
        table, text = only("categorical", pa.array(values), 'table = "t"\n[[table]]\nname = "t"\nmin_count = 3')
        dataset = run(tmp_path, table, text)
        assert vocabulary(tmp_path, "t") == {"a": 2, "b": 3}
        assert dataset.table("t").rows == 4
        assert Counter(read_all(tmp_path)["x"].to_pylist()) == {MISSING: 10, UNSEEN: 2, 2: 50, 3: 30}

    def test_negative_ids_and_nan_are_raw_values(self, tmp_path: Path) -> None:
        table, text = only("categorical", pa.array([-1.0] * 5 + [float("nan")] * 3 + [0.0] * 2))
        run(tmp_path, table, text)
        assert vocabulary(tmp_path, "x") == {-1.0: 2, 0.0: 3}
        assert Counter(read_all(tmp_path)["x"].to_pylist()) == {2: 5, MISSING: 3, 3: 2}

    @pytest.mark.parametrize(
        "values",
        [
            [True, False, None] * 4,
            [datetime.date(2024, 1, day) for day in range(1, 9)],
            [datetime.datetime(2024, 1, day, 1) for day in range(1, 9)],
            [2**40 + i for i in range(9)],
            [b"\xff\x00", b"", b"\xff"],
        ],
        ids=["boolean", "date", "timestamp", "large", "bytes"],
    )
    def test_values_of_any_simple_type(self, tmp_path: Path, values: list[Any]) -> None:
        table, text = only("categorical", pa.array(values))
        run(tmp_path, table, text)
        numbers = vocabulary(tmp_path, "x")
        expected = Counter(MISSING if value is None else numbers[value] for value in values)
        assert Counter(read_all(tmp_path)["x"].to_pylist()) == expected

    @pytest.mark.parametrize(
        ("column", "values"),
        [
            ("k::hugeint + 170141183460469231731687303715884105720", [str(2**127 - 8 + k) for k in range(4)]),
            ("k::uhugeint + 340282366920938463463374607431768211450", [str(2**128 - 6 + k) for k in range(4)]),
            ("case k when 0 then 'infinity' else '1970-01-01 00:00:0' || k end::timestamp_s", None),
            ("case k when 0 then 'infinity' else '1970-01-01 00:00:0' || k end::timestamp_ms", None),
            ("to_days(k::int)", ["00:00:00", "1 day", "2 days", "3 days"]),
            ("from_hex('FF') || k::varchar::blob", [b"\xff0", b"\xff1", b"\xff2", b"\xff3"]),
            ("('101' || (k // 2) || (k % 2))::bit", ["10100", "10101", "10110", "10111"]),
            ("('10:00:0' || k || '+02')::timetz", [f"10:00:0{k}+02" for k in range(4)]),
        ],
        ids=["hugeint", "uhugeint", "seconds", "milliseconds", "interval", "blob", "bit", "timetz"],
    )
    @pytest.mark.parametrize("kind", ["categorical", "list"])
    def test_values_of_types_that_only_sql_has(
        self, tmp_path: Path, column: str, values: list[Any] | None, kind: str
    ) -> None:
        table = pa.table({"k": [0, 1, 2, 3] * 3, "y": [0, 1] * 6})
        text = only(kind, pa.array([1]))[1]
        run(tmp_path, table, text.replace("*", f"{f'[{column}, null]' if kind == 'list' else column} as x, y", 1))
        # Python has no infinite moments.
        assert values is None or sorted(vocabulary(tmp_path, "x")) == sorted(values)
        found = read_all(tmp_path)["x"].to_pylist()
        assert Counter(id[0] if isinstance(id, list) else id for id in found) == dict.fromkeys((2, 3, 4, 5), 3)

    def test_units_of_time_may_share_a_table(self, tmp_path: Path) -> None:
        text = only("categorical", pa.array([1]), 'table = "t"\n[[table]]\nname = "t"\n')[1]
        text = text.replace("*", "moment as x, moment::timestamp_s as second, y", 1)
        at = pa.array([datetime.datetime(2024, 1, 1 + k % 3) for k in range(12)], pa.timestamp("us"))
        table = pa.table({"moment": at, "y": [0, 1] * 6})
        run(tmp_path, table, text + '[[feature]]\nname = "second"\ntable = "t"\n')
        rows = read_all(tmp_path)
        assert rows["x"].to_pylist() == rows["second"].to_pylist()

    def test_hashed_table_has_no_vocabulary(self, tmp_path: Path) -> None:
        rest = 'table = "t"\n[[table]]\nname = "t"\nhash_rows = 10\ndim = 4'
        values = [f"v{i}" for i in range(100)]
        table, text = only("categorical", pa.array([None, *values]), rest)
        dataset = run(tmp_path, table, text)
        assert (dataset.tables[0].rows, dataset.tables[0].hashed, dataset.tables[0].dim) == (10, True, 4)
        assert not list((tmp_path / "out" / "vocab").iterdir())
        # As docs/recipes.md says: an id can be computed anywhere, and is the same in other versions of the engine.
        hashes = hash_texts(pa.array(values)).tolist()
        expected = [FIRST + murmur64a(key.to_bytes(8, "little")) % (10 - FIRST) for key in hashes]
        assert Counter(read_all(tmp_path)["x"].to_pylist()) == Counter([MISSING, *expected])

    def test_lists_keep_their_order_and_lose_missing_values(self, tmp_path: Path) -> None:
        lists = [["a", "b", "a", None, "rare", "b"], ["b"], [], None, ["a", "a", "a", None, None, "b"]]
        table, text = only("list", pa.array(lists), 'table = "t"\nmax_length = 5\n[[table]]\nname = "t"\nmin_count = 2')
        run(tmp_path, table, text)
        assert vocabulary(tmp_path, "t") == {"a": 2, "b": 3}
        [feature] = Dataset.load(tmp_path / "out").features
        assert feature.mean_length == pytest.approx((4 + 1 + 0 + 0 + 3) / 5)
        assert sorted(read_all(tmp_path)["x"].to_pylist()) == [[], [], [2, 2, 2], [2, 3, 2, UNSEEN], [3]]

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
        (feature,) = dataset.dense_features
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
        assert vocabulary(tmp_path, "x") == {"a": 2}
        assert set(read(tmp_path, "test")["x"].to_pylist()) == {UNSEEN}
        assert first.tasks[0].base_rate == {"train": 0.0, "test": 1.0}
        second = run(tmp_path, table, text + 'vocab_from = "all"\n', out="all")
        assert second.tables[0].rows == 4
        assert first.encoding_fingerprint != second.encoding_fingerprint

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
    assert dataset.table("text").rows == FIRST + len(known_text)
    train = [int(place) for place in parts["train"]["place"]]
    seen = Counter(value for row in train for value in (number[row], *items[row]) if value is not None)
    assert set(known_number) == {value for value, count in seen.items() if count >= min_count}
    assert [seen[value] for value in known_number] == sorted((seen[value] for value in known_number), reverse=True)
    for part in parts.values():
        for i, place in enumerate(map(int, part.get("place", []))):
            assert part["text"][i] == (MISSING if text[place] is None else known_text.get(text[place], UNSEEN))
            assert part["number"][i] == (MISSING if number[place] is None else known_number.get(number[place], UNSEEN))
            assert part["items"][i] == [known_number.get(item, UNSEEN) for item in items[place] if item is not None]
