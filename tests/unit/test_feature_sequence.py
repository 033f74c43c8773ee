"""Sequences from raw columns to batches: against plain Python, and one line for every mistake."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from histories import RECIPE, raw_rows, write_data
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import read_all, run, vocabulary

from recmtl.data.read.reader import Reader
from recmtl.data.recipe import load_recipe
from recmtl.encoding.encoder import Encoder
from recmtl.encoding.vocabulary import Hashed
from recmtl.errors import UserError
from recmtl.features import make_kind
from recmtl.inference.exported import to_tensors
from recmtl.inference.inputs import Collator
from recmtl.schema import MISSING, UNSEEN, Dataset, Feature, Table

TEXTS = st.none() | st.text(st.sampled_from("ab ,"), max_size=3)


def kept(row: list | None, longest: int | None) -> list:
    row = row or []
    return row if longest is None else row[max(0, len(row) - longest) :]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.none() | st.lists(st.none() | st.integers(0, 5), max_size=6)), st.none() | st.integers(1, 4))
def test_the_last_items_keep_their_places(rows, longest):
    """With missing and unseen ones, through assembling and reading; of slices too."""
    kind = make_kind(Feature("x", kind="sequence", table="x", max_length=longest))
    column = pa.array([[9], *rows, [9]], pa.list_(pa.int64())).slice(1, len(rows))
    items, lengths = kind.flatten(column)
    wanted = [kept(row, longest) for row in rows]
    assert items.to_pylist() == [item for row in wanted for item in row]
    assert lengths.tolist() == [len(row) for row in wanted]
    ids = np.array([MISSING if item is None else item + UNSEEN for item in items.to_pylist()], np.int32)
    prepared = kind.assemble(ids, lengths)
    assert prepared.type == kind.prepared_type
    places = itertools.pairwise(np.cumsum([0, *lengths]))
    assert prepared.to_pylist() == [ids[start:stop].tolist() for start, stop in places]
    counts, read = kind.read(prepared)
    assert counts.tolist() == lengths.tolist()
    assert read.tolist() == ids.tolist()


@settings(deadline=None, max_examples=60)
@given(st.lists(TEXTS), st.none() | st.integers(1, 3))
def test_parts_of_texts_keep_their_places(rows, longest):
    """An empty part is a missing item; a text without anything in it has no items."""
    kind = make_kind(Feature("x", kind="sequence", table="x", separator=",", max_length=longest))
    items, lengths = kind.flatten(pa.array(rows, pa.string()))
    wanted = [
        kept([part.strip() or None for part in row.split(",")] if row and row.strip() else [], longest) for row in rows
    ]
    assert items.to_pylist() == [part for row in wanted for part in row]
    assert lengths.tolist() == [len(row) for row in wanted]


LISTS = st.lists(st.none() | st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(LISTS, LISTS)
def test_histories_of_one_length_a_row_or_an_error(first, second):
    features = tuple(Feature(n, "sequence", n, table=n, history="h", max_length=2) for n in ("a", "b"))
    tables = tuple(Table(name, 9, hashed=True, value_type="BIGINT") for name in ("a", "b"))
    kind = pa.list_(pa.int64())
    encoder = Encoder(features, tables, {n: Hashed(9) for n in ("a", "b")}, pa.schema([("a", kind), ("b", kind)]))
    rows = min(len(first), len(second))
    columns = {"a": pa.array(first[:rows], kind), "b": pa.array(second[:rows], kind)}
    lengths = [[len(row or []) for row in column[:rows]] for column in (first, second)]
    differing = [row for row in range(rows) if lengths[0][row] != lengths[1][row]]
    if not differing:
        encoded = Collator(features).collate(encoder.encode(columns))
        padded = [ids for ids, _ in to_tensors(encoded)[2]]
        assert [tuple(ids.shape) for ids in padded] == [(rows, 2)] * 2
        for ids, column in zip(padded, encoder.encode(columns).values(), strict=True):
            assert ids.tolist() == [row + [0] * (2 - len(row)) for row in column.to_pylist()]
        return
    row = differing[0]
    said = rf"history 'h' misaligned in row {row} .*: column 'b' has {lengths[1][row]} items and column 'a' "
    with pytest.raises(UserError, match=said + str(lengths[0][row])):
        encoder.encode(columns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("histories")
    write_data(folder)
    return folder


def test_prepared_histories(folder: Path) -> None:
    rows = {row["number"]: row for row in raw_rows().to_pylist()}
    text = RECIPE.replace('name = "price"', 'name = "number"')
    run(folder, raw_rows(), text, "numbered")
    for table, column in (("item", "last_items"), ("brand", "last_brands"), ("action", "last_actions")):
        ids = vocabulary(folder, table)
        for row in read_all(folder, "numbered").select(["number", column]).to_pylist():
            raw = kept(rows[int(row["number"])][column], 20)
            known = [MISSING if value is None else ids.get(value, UNSEEN) for value in raw]
            assert row[column] == known
    dataset = Dataset.load(folder / "out")
    by_name = {feature.name: feature for feature in dataset.features}
    lengths = [len(row) for row in pq.read_table(folder / "out" / "train")["last_items"].to_pylist()]
    assert by_name["last_items"].longest == max(lengths) == 20
    assert by_name["last_items"].mean_length == pytest.approx(np.mean(lengths))
    assert by_name["searches"].history == "searches"


def test_batches_say_how_long_histories_are(folder: Path) -> None:
    dataset = Dataset.load(folder / "out")
    reader = Reader(folder / "out", dataset, "train", dataset.tasks, batch_size=7, streams=3)
    for batch in reader.batches():
        assert set(batch.longest) == {"last_items", "last_brands", "last_actions", "searches"}
        for name, longest in batch.longest.items():
            assert longest == int(batch.sparse[name].lengths().max())


def test_a_prepared_file_whose_histories_differ_is_refused(folder: Path, tmp_path: Path) -> None:
    dataset = Dataset.load(folder / "out")
    (tmp_path / "train").mkdir()
    table = pq.read_table(sorted((folder / "out" / "train").iterdir())[0])
    lists = table["last_brands"].to_pylist()
    lists[5] = [*lists[5], 2]
    place = table.schema.get_field_index("last_brands")
    changed = table.set_column(place, table.schema.field(place), pa.array(lists, table.schema.field(place).type))
    pq.write_table(changed, tmp_path / "train" / "part-00000.parquet")
    reader = Reader(tmp_path, dataset, "train", dataset.tasks, batch_size=16, streams=1)
    with pytest.raises(UserError, match=r"part-00000.parquet: history 'before' misaligned in row 5 .*'last_brands'"):
        list(reader.batches())


MISTAKES = [
    ('target = "item"', 'target = "itm"', r"target: there is no \[\[feature\]\] 'itm'; did you mean 'item'"),
    ('target = "item"', 'target = "user"', r"target: 'user' is categorical of table 'user'; .* table 'item'"),
    ('target = "item"', 'target = "liked_items"', "target: 'liked_items' is list of table 'item'; it must be"),
    ('target = "item"\nmax_length = 20', 'target = "item"\nmax_length = 9', "9, and 20 of 'last_actions'"),
    ('kind = "list"', 'kind = "list"\ntarget = "item"', "target is for features of kind sequence"),
    ("separator", 'pooling = "mean"\nseparator', "pooling is for features of kind list"),
    ('history = "before"', 'history = "price"', "history: 'price' is the name of a feature; give the history another"),
    ('history = "before"', 'history = "a.b"', "history: 'a.b' is not a name"),
]


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES)
def test_mistakes_in_a_recipe(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    assert old in RECIPE
    path.write_text(RECIPE.replace(old, new))
    with pytest.raises(UserError, match=said):
        load_recipe(str(path))
