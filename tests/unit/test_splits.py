"""Splits: they depend on nothing that is predicted, take what was asked for, and refuse what is no time."""

from __future__ import annotations

import datetime
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepared import read, read_all, run

from recmtl.data.prepare import numbering
from recmtl.errors import UserError
from recmtl.schema import SPLITS

RECIPE = 'sql = "select {0} from raw"\n[[feature]]\nname = "item"\n[[task]]\nname = "y"\nlabel = "y"\n'
NUMBER = '[[feature]]\nname = "n"\nkind = "numeric"\n'
ANY = [HealthCheck.function_scoped_fixture]


def splits_of(folder: Path, column: str) -> dict[Any, str]:
    """Split by the value of a column whose values differ."""
    return {value: split for split in SPLITS for value in read(folder, split).to_pydict().get(column, [])}


@pytest.mark.parametrize(
    ("sql", "logs"),
    [("item, y", 50), ("*", 10), ("item, y, not y::bool as leak, 'x' as filename", 10), ("item, y, y as other", 10)],
)
def test_the_label_is_as_frequent_in_test_rows_as_elsewhere(tmp_path: Path, sql: str, logs: int) -> None:
    """The z-scores of the base rate in the test rows are those of random samples."""
    scores = []
    for seed in range(logs):
        rng = np.random.default_rng(seed)
        rows = 300
        item = rng.integers(0, 2**40) + rng.integers(0, 5, rows)
        table = pa.table({"item": item, "y": (rng.random(rows) < 0.3).astype(np.int8)})
        folder = tmp_path / str(seed)
        folder.mkdir()
        dataset = run(folder, table, RECIPE.format(sql) + "[split]\ntest = 0.3\n", threads=1)
        rate, test = table["y"].to_numpy().mean(), dataset.rows["test"]
        error = np.sqrt(rate * (1 - rate) / test * (1 - test / rows))
        scores.append((dataset.tasks[0].base_rate["test"] - rate) / error)
    assert np.max(np.abs(scores)) < 4
    assert abs(np.mean(scores)) < 4 / np.sqrt(logs)
    assert 0.5 < np.std(scores) < 1.6


@settings(max_examples=6, deadline=None, suppress_health_check=ANY)
@given(data=st.data(), split=st.sampled_from(["", 'by = "time"\ncolumn = "t"\n', 'by = "column"\ncolumn = "p"\n']))
@pytest.mark.parametrize("sql", ["item, n, y, t, p", "*"])
def test_other_labels_move_no_row(tmp_path_factory: pytest.TempPathFactory, sql: str, data: Any, split: str) -> None:
    rows = 60
    labels = data.draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
    text = RECIPE.format(sql).replace("[[task]]", NUMBER + "[[task]]") + f"[split]\n{split}val = 0.3\n"
    found, orders = [], []
    for y in ([0] * rows, labels):
        folder = tmp_path_factory.mktemp("labels")
        columns = {
            "item": [k % 3 for k in range(rows)],
            "n": list(range(rows)),
            "y": y,
            "t": [k // 9 for k in range(rows)],
        }
        run(folder, pa.table({**columns, "p": ["test" if k % 4 == 0 else "train" for k in range(rows)]}), text)
        found.append(splits_of(folder, "n"))
        orders.append(read_all(folder)["n"].to_pylist())
    assert found[0] == found[1]
    assert orders[0] == orders[1]


def test_rows_alike_in_all_but_the_label_are_dealt_one_by_one(tmp_path: Path) -> None:
    """With one key for all rows, the fractions hold all the same; with few ranges of hashes or many."""
    table = pa.table({"item": ["a"] * 3000, "y": [k % 2 for k in range(3000)]})
    dataset = run(tmp_path, table, RECIPE.format("item, y") + "[split]\nval = 0.2\ntest = 0.3\n")
    assert dataset.rows["val"] == pytest.approx(600, abs=100)
    assert dataset.rows["test"] == pytest.approx(900, abs=100)
    again = run(tmp_path, table, RECIPE.format("item, y") + "[split]\nval = 0.2\ntest = 0.3\n", out="again")
    assert again == dataset


def test_hashes_sorted_range_by_range_find_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"item": [k // 2 for k in range(2000)], "y": [k % 2 for k in range(2000)]})
    text = RECIPE.format("item, y")
    assert run(tmp_path, table, text).rows["test"] > 0
    monkeypatch.setattr(numbering, "HASHES_SHARE", 10**6)
    assert run(tmp_path, table, text, out="ranges") == run(tmp_path, table, text, out="again")
    whole = [read(tmp_path, split) for split in SPLITS]
    monkeypatch.undo()
    (tmp_path / "out").rename(tmp_path / "first")
    (tmp_path / "ranges").rename(tmp_path / "out")
    assert [read(tmp_path, split) for split in SPLITS] == whole


def test_features_change_nothing_where_the_place_is_there(tmp_path: Path) -> None:
    table = pa.table({"item": [k % 3 for k in range(300)], "n": range(300), "y": [k % 2 for k in range(300)]})
    text = RECIPE.format("*").replace("[[task]]", NUMBER + "[[task]]")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run(tmp_path / "a", table, text)
    run(tmp_path / "b", table, text.replace('name = "item"', 'name = "item"\n[[feature]]\nname = "filename"'))
    assert splits_of(tmp_path / "a", "n") == splits_of(tmp_path / "b", "n")


@pytest.mark.parametrize(
    ("split", "where"),
    [
        ('key = ["item", "y"]', "key"),
        ('by = "time"\ncolumn = "y"', "column"),
        ('by = "column"\ncolumn = "y"', "column"),
    ],
)
def test_a_split_by_what_is_predicted_is_refused(tmp_path: Path, split: str, where: str) -> None:
    table = pa.table({"item": [1, 2], "y": [0, 1]})
    with pytest.raises(UserError, match=rf"\[split\]: {where}: column 'y' is what task 'y' predicts"):
        run(tmp_path, table, RECIPE.format("*") + f"[split]\n{split}\n")


def test_few_keys_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"item": [k % 2 for k in range(1000)], "y": [k // 2 % 2 for k in range(1000)]})
    text = RECIPE.format("*") + '[split]\nkey = ["item"]\nval = 0.2\ntest = 0.0\n'
    dataset = run(tmp_path, table, text)
    assert sorted(dataset.rows.values()) in ([0, 0, 1000], [0, 500, 500])
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert f"mine.toml: [split]: {dataset.rows['val']} val rows, not about 200: few or very unequal groups" in note


def test_usual_splits_are_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for number, rows in enumerate((5, 100, 5000)):
        run(
            tmp_path,
            pa.table({"item": rng.random(rows), "y": [0, *[1] * (rows - 1)]}),
            RECIPE.format("*"),
            f"o{number}",
        )
    assert "[split]" not in capsys.readouterr().err


TIMES = [
    (pa.array([float("nan"), *map(float, range(99))]), "is NaN in 1 rows"),
    (pa.array([float("inf"), -float("inf"), *map(float, range(98))]), "is infinite in 2 rows"),
    (pa.array([None, *range(99)]), "is null in 1 rows"),
    (pa.array([str(k) for k in range(100)]), "is VARCHAR; by = 'time' needs a number, a date or a timestamp: cast"),
    (pa.array([str(k) for k in range(100)]).dictionary_encode(), "by = 'time' needs"),
    (pa.array([k > 50 for k in range(100)]), "is BOOLEAN; by = 'time' needs"),
    (pa.array([[k] for k in range(100)]), "BIGINT[]; by = 'time' needs"),
    (pa.array([datetime.time(k % 24) for k in range(100)]), "is TIME; by = 'time' needs"),
]


@pytest.mark.parametrize(("times", "message"), TIMES, ids=[row[1][:18] for row in TIMES])
def test_what_is_no_time_is_refused(tmp_path: Path, times: pa.Array, message: str) -> None:
    table = pa.table({"item": range(100), "y": [k % 2 for k in range(100)], "t": times})
    with pytest.raises(UserError) as caught:
        run(tmp_path, table, RECIPE.format("*") + '[split]\nby = "time"\ncolumn = "t"\n')
    assert "[split]: column 't' is" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_infinite_timestamp_is_refused(tmp_path: Path) -> None:
    table = pa.table({"item": range(100), "y": [k % 2 for k in range(100)]})
    sql = "*, case when item = 3 then timestamp 'infinity' else epoch_ms(item) end as t"
    with pytest.raises(UserError, match="'t' is infinite in 1 rows"):
        run(tmp_path, table, RECIPE.format(sql) + '[split]\nby = "time"\ncolumn = "t"\n')


def test_minus_zero_is_the_time_zero(tmp_path: Path) -> None:
    """Neither kind of zero is later than the other."""
    table = pa.table({"item": range(400), "n": range(400), "y": [0, 1] * 200, "t": [0.0, -0.0] * 200})
    text = RECIPE.format("*").replace("[[task]]", NUMBER + "[[task]]")
    run(tmp_path, table, text + '[split]\nby = "time"\ncolumn = "t"\nval = 0.0\ntest = 0.5\n')
    counts = Counter(int(number) % 2 for number in read(tmp_path, "test")["n"].to_pylist())
    assert counts.total() == 200
    assert 60 < counts[0] < 140


@settings(max_examples=8, deadline=None, suppress_health_check=ANY)
@given(times=st.lists(st.integers(0, 3), min_size=10, max_size=60))
def test_time_takes_exact_counts_whatever_the_ties(tmp_path_factory: pytest.TempPathFactory, times: list[int]) -> None:
    """Also between rows that are alike in every column."""
    table = pa.table({"item": ["a"] * len(times), "y": [1] * len(times), "t": times})
    text = RECIPE.format("item, y, t")
    dataset = run(tmp_path_factory.mktemp("ties"), table, text + '[split]\nby = "time"\ncolumn = "t"\ntest = 0.3\n')
    assert (dataset.rows["test"], dataset.rows["val"]) == (round(0.3 * len(times)), round(0.1 * len(times)))
