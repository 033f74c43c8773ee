"""`prepare` by the packaged recipes and the documented one, and from several sources."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import RECIPE, events, read_all, run, vocabulary

from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe


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
        assert vocabulary(tmp_path, "file") == {"0.parquet": 2, "202301/x.parquet": 3}


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


def test_merrec_takes_events_of_one_second_file_by_file(tmp_path: Path) -> None:
    """The second file's rows have lower numbers than the last ones of the first."""
    table = merrec_events().slice(0, 10)
    table = table.set_column(table.schema.get_field_index("stime"), "stime", pa.array([0] * 10, pa.timestamp("us")))
    pq.write_table(table.slice(0, 6), tmp_path / "a.parquet")
    pq.write_table(table.slice(6), tmp_path / "b.parquet")
    (tmp_path / "mine.toml").write_text('extends = "merrec"\n[split]\nval = 0.0\ntest = 0.0\n')
    prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path, tmp_path / "out")
    product = {number: value for value, number in vocabulary(tmp_path, "product").items()}
    names = sorted([product[row[f"hist_{i}"]] for i in range(1, 8)] for row in read_all(tmp_path).to_pylist())
    assert names == [[f"p0-{start + i}" for i in range(7)] for start in range(3)]


def test_merrec_sequence_holds_events_strictly_before(tmp_path: Path) -> None:
    """The rows and labels of merrec; every history ends at the event before its row, also within a second."""
    (tmp_path / "raw").mkdir()
    pq.write_table(merrec_events(), tmp_path / "raw" / "000000000000.parquet")
    (tmp_path / "mine.toml").write_text('extends = "merrec_sequence"\n[split]\nval = 0.0\ntest = 0.0\n')
    dataset = prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path / "raw", tmp_path / "out")
    assert dataset.rows["train"] == 3 + 1
    names = {
        table: {number: value for value, number in vocabulary(tmp_path, table).items()}
        for table in ("product", "action", "gap")
    }
    for row in read_all(tmp_path).to_pylist():
        sequence, place = map(int, names["product"][row["product_id"]].removeprefix("p").split("-"))
        before = range(place - 7, place)
        assert [names["product"][id] for id in row["last_products"]] == [f"p{sequence}-{i}" for i in before]
        actions = [("item_view", "item_like", "buy_comp")[i % 3] for i in before]
        assert [names["action"][id] for id in row["last_actions"]] == actions
        gaps = [round(np.log2(1 + place // 2 - i // 2)) for i in before]
        assert [names["gap"][id] for id in row["last_gaps"]] == gaps
        assert len(row["last_brands"]) == len(row["last_categories"]) == 7
        assert (row["label_view"], row["label_like"]) == (int(place % 3 == 0), int(place % 3 == 1))


def test_kuairand_knows_outcomes_after_their_delay_and_impressions_at_once() -> None:
    """Impressions of one video and user at seconds 0, 30, 60, 61, 900 and 901, each clicked, viewed long and liked."""
    seconds = [0, 30, 60, 61, 900, 901]
    rows = len(seconds)
    log = {"user_id": [1] * rows, "video_id": [7] * rows, "time_ms": [1000 * second for second in seconds]}
    log |= {name: [1] * rows for name in ("is_click", "is_like", "long_view", "duration_ms", "hourmin")}
    views = {"log": log, "videos": {"video_id": [7], "author_id": [5]}, "users": {"user_id": [1]}}
    with duckdb.connect() as db:
        for name, columns in views.items():
            table = pa.table(columns)
            extra = {"filename": [name] * table.num_rows, "file_row_number": range(table.num_rows)}
            db.register(name, pa.table({**columns, **extra}))
        found = db.sql(load_recipe("kuairand").sql).order("time_ms").to_arrow_table().to_pydict()
    for name in ("user", "video", "author"):
        assert found[f"{name}_seen"] == [0, 1, 2, 3, 4, 5]
        assert found[f"{name}_clicks"] == [0, 0, 1, 1, 4, 4]
        assert found[f"{name}_views"] == found[f"{name}_likes"] == [0, 0, 0, 0, 1, 1]
    assert [len(items or ()) for items in found["last_clicked"]] == [0, 0, 1, 1, 4, 4]
    assert [len(items or ()) for items in found["last_liked"]] == [0, 0, 0, 0, 1, 1]
    assert found["user_click_rate"] == pytest.approx([2 / 5, 2 / 5, 3 / 6, 3 / 6, 6 / 9, 6 / 9])
    assert found["pause"] == [None, 30_000, 30_000, 1000, 839_000, 1000]


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
    assert [table.rows for table in dataset.tables if table.name in ("brand", "tags")] == [4, 4]


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
