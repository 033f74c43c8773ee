"""Columns of a recipe that metrics are measured by and no model reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from prepared import RECIPE, events, read_all, run
from trained import RECIPE as KINDS
from trained import raw_rows, train, write_raw

from recmtl import cli
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError
from recmtl.schema import Dataset
from recmtl.training.segments import read_segments


def with_segments(*names: str, recipe: str = RECIPE) -> str:
    return recipe.replace('group = "user"', f'group = "user"\nsegments = {list(names)}', 1)


def test_values_are_text_and_nothing_else_changes(tmp_path):
    table = events(300)
    odd = pa.array([0.0, -0.0, float("nan"), None, 1.5] * 60)
    table = table.append_column("odd", odd)
    plain = run(tmp_path, table, out="plain")
    found = run(tmp_path, table, with_segments("odd", "at", "user", "number"))
    assert found.segments == ("odd", "at", "user", "number")
    assert Dataset.load(tmp_path / "out") == found
    assert found.encoding_fingerprint == plain.encoding_fingerprint
    assert found.data_fingerprint != plain.data_fingerprint
    rows, before = read_all(tmp_path), read_all(tmp_path, "plain")
    assert rows.select(before.column_names) == before
    by_number = dict(zip(rows["segment_number"].to_pylist(), rows["segment_odd"].to_pylist(), strict=True))
    assert [by_number[str(n)] for n in range(5)] == ["0.0", "0.0", None, None, "1.5"]
    at = dict(zip(table["number"].to_pylist(), table["at"].to_pylist(), strict=True))
    segments = zip(rows["segment_number"].to_pylist(), rows["segment_at"].to_pylist(), strict=True)
    assert all(str(at[int(number)]) == text for number, text in segments)


def test_what_is_read_of_a_split_is_in_the_order_of_its_files(tmp_path):
    dataset = run(tmp_path, events(300), with_segments("user"))
    found = read_segments(tmp_path / "out", dataset, "train", ["user", "item", "previous"])
    rows = read_all(tmp_path).slice(0, dataset.rows["train"])
    column = found["user"]
    assert [column.values[code] for code in column.codes] == rows["segment_user"].to_pylist()
    counts = np.bincount(column.codes)
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)
    # A feature's own ids are led back to the values of its table: item and previous share theirs.
    for name in ("item", "previous"):
        column = found[name]
        ids = rows[name].to_numpy()
        for code, value in enumerate(column.values):
            [number] = np.unique(ids[column.codes == code])
            assert (value == "missing") == (number == 0)
            assert (value == "unseen") == (number == 1)


def test_other_values_are_other_data(tmp_path):
    one = run(tmp_path, events(100), with_segments("at"), out="one")
    table = events(100)
    moved = pa.array([*table["at"].to_pylist()[:-1], None], pa.int64())
    other = run(tmp_path, table.set_column(table.schema.get_field_index("at"), "at", moved), with_segments("at"))
    assert one.data_fingerprint != other.data_fingerprint
    differing = [name for split, columns in one.content.items() for name in columns if columns != other.content[split]]
    assert "segment_at" in differing


def test_rows_that_differ_in_a_segment_alone_have_a_place_of_their_own(tmp_path):
    rows = 2000
    table = pa.table({"x": np.zeros(rows, int), "y": np.zeros(rows, int), "s": np.arange(rows)})
    recipe = (
        'sql = "select * from raw"\nsegments = "s"\n[[feature]]\nname = "x"\n[[task]]\nname = "y"\nlabel = "y"\n'
        "[split]\nval = 0.1\ntest = 0.1\n"
    )
    found = [run(tmp_path, table, recipe, out=f"{n}", threads=n).data_fingerprint for n in (1, 2)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("nothing",), "segments: sql yields no column 'nothing'"),
        (("tags",), "segments: column 'tags' is VARCHAR[]; a segment is a single value"),
        (("user", "User"), "segments: 'user' is there twice"),
        (("a b",), "segments: 'a b' is not a name"),
    ],
)
def test_wrong_segments_are_one_line(tmp_path, names, message):
    with pytest.raises(UserError) as caught:
        run(tmp_path, events(50), with_segments(*names))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_models_plans_and_predictions_do_without_them(tmp_path):
    """New raw files may lack the column."""
    (tmp_path / "kinds.toml").write_text(with_segments("country", recipe=KINDS))
    raw = raw_rows()
    country = pa.array(["DE", "FR"] * (len(raw) // 2))
    write_raw(tmp_path / "raw", raw.append_column("country", country))
    prepare(load_recipe(str(tmp_path / "kinds.toml")), tmp_path / "raw", tmp_path / "data")
    (tmp_path / "plain.toml").write_text(KINDS)
    prepare(load_recipe(str(tmp_path / "plain.toml")), tmp_path / "raw", tmp_path / "plain")
    run = train(tmp_path / "data", tmp_path / "run", "mmoe", metrics__by="country")
    without = train(tmp_path / "plain", tmp_path / "other", "mmoe")
    plans = [(folder / "plan.json").read_text() for folder in (run, without)]
    assert plans[0] == plans[1]
    write_raw(tmp_path / "new", raw)
    cli.predict([str(run), str(tmp_path / "new"), str(tmp_path / "predicted")])
    assert any(Path(tmp_path / "predicted").glob("*.parquet"))
