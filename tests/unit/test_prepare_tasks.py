"""Labels that are missing, weights, sampled negatives, and tasks that are numbers, from raw files to prepared ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepared import read, read_all, run

from recmtl.data.read.reader import Reader
from recmtl.errors import UserError
from recmtl.schema import Dataset

RECIPE = """
sql = "select * from raw"
{top}
[[feature]]
name = "n"
kind = "numeric"
[[feature]]
name = "user"
[[task]]
name = "click"
label = "click"
[[task]]
name = "buy"
label = "buy"
parent = "click"
{rest}
[split]
val = 0.2
test = 0.2
"""


def recipe(top: str = "", rest: str = "") -> str:
    return RECIPE.format(top=top, rest=rest)


def events(rows: int = 400, seed: int = 0, **columns: Any) -> pa.Table:
    """Who was shown something may click, and who clicked may buy; without a click nothing is known of buying."""
    rng = np.random.default_rng(seed)
    click = rng.random(rows) < 0.4
    table = {
        "n": pa.array(np.arange(rows)),
        "user": pa.array([f"u{i}" for i in rng.integers(0, 9, rows)]),
        "click": pa.array(click.astype(np.int64)),
        "buy": pa.array((rng.random(rows) < 0.5).astype(np.int64), mask=~click),
    }
    return pa.table(table | columns)


def by_number(folder: Path, column: str) -> dict[int, Any]:
    """A prepared column by the raw row's number."""
    found = read_all(folder)
    return dict(zip(map(round, found["n"].to_pylist()), found[column].to_pylist(), strict=True))


def test_missing_labels_stay_missing(tmp_path):
    table = events()
    dataset = run(tmp_path, table, recipe())
    assert by_number(tmp_path, "label_buy") == dict(enumerate(table["buy"].to_pylist()))
    assert read(tmp_path, "train").schema.field("label_click").nullable is False
    click, buy = dataset.tasks
    assert click.observed == dataset.rows
    for split in dataset.rows:
        labels = read(tmp_path, split)["label_buy"].drop_null().to_numpy()
        assert buy.observed[split] == len(labels)
        assert buy.base_rate[split] == pytest.approx(labels.mean())
    assert dataset.is_partial(buy)
    assert not dataset.is_partial(click)
    assert Dataset.load(tmp_path / "out") == dataset


def test_rows_without_any_label_are_left_out_and_counted(tmp_path):
    table = events()
    none = pa.array(np.arange(400) % 5 == 0)
    gone = {name: pc.if_else(none, pa.scalar(None, pa.int64()), table[name]) for name in ("click", "buy")}
    user = pc.if_else(none, "only there", table["user"])
    dataset = run(tmp_path, events(user=user, **gone), recipe())
    assert dataset.unlabelled == 80
    assert sum(dataset.rows.values()) == 320
    assert set(by_number(tmp_path, "label_click")) == set(np.flatnonzero(np.arange(400) % 5).tolist())
    # No training row has the value: it has no id.
    assert "only there" not in pq.read_table(tmp_path / "out" / "vocab" / "user.parquet")["value"].to_pylist()


def test_no_labels_at_all_is_one_line(tmp_path):
    nothing = pa.nulls(400, pa.int64())
    with pytest.raises(UserError, match="no label in any of 400 rows"):
        run(tmp_path, events(click=nothing, buy=nothing), recipe())


def test_a_task_without_training_labels_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"\[\[task\]\] 'buy': label 'buy' is null in all training rows"):
        run(tmp_path, events(buy=pa.nulls(400, pa.int64())), recipe())


@pytest.mark.parametrize(
    ("relation", "labelled", "conditional"),
    [
        ("given", lambda click, i: click == 1, True),
        ("given", lambda click, i: (click == 1) | (i == 17), False),
        ("given", lambda click, i: np.full(len(i), True), False),
        ("given_not", lambda click, i: click == 0, True),
        ("given_not", lambda click, i: click == 1, False),
        ("given", lambda click, i: (click == 1) & (i % 3 > 0), True),  # late ones are not known yet
    ],
)
def test_a_label_that_only_rows_of_its_parent_have_is_conditional(tmp_path, relation, labelled, conditional):
    rows = np.arange(400)
    click = np.where(rows == 17, 0, rows % 2)
    known = labelled(click, rows)
    table = events(click=pa.array(click), buy=pa.array((rows // 2) % 2, mask=~known))
    text = recipe().replace('parent = "click"', f'parent = "click"\nrelation = "{relation}"')
    assert [task.conditional for task in run(tmp_path, table, text).tasks] == [False, conditional]


def test_weights_of_rows_and_tasks_multiply(tmp_path):
    rng = np.random.default_rng(1)
    columns = {name: pa.array(rng.integers(0, 4, 400) / 2) for name in ("w", "of_buy")}
    text = recipe('weight = "w"').replace('parent = "click"', 'parent = "click"\nrow_weight = "of_buy"')
    table = events(**columns)
    dataset = run(tmp_path, table, text)
    rows = Reader(tmp_path / "out", dataset, "train", dataset.tasks, batch_size=64, streams=4)
    for batch in rows.batches():
        numbers = batch.numeric[: batch.rows, 0].int().tolist()
        weights = columns["w"].to_numpy()[numbers]
        np.testing.assert_array_equal(batch.row_weights[: batch.rows, 0], weights)
        np.testing.assert_array_equal(
            batch.row_weights[: batch.rows, 1], weights * columns["of_buy"].to_numpy()[numbers]
        )
        assert not batch.row_weights[batch.rows :].any()
        labels = np.array([table["buy"][i].as_py() for i in numbers], float)
        np.testing.assert_array_equal(batch.labels[: batch.rows, 1], labels)
    train = read(tmp_path, "train")
    known = train["label_buy"].is_valid().to_numpy()
    weights = (train["weight"].to_numpy() * train["weight_buy"].to_numpy())[known]
    labels = train["label_buy"].to_numpy()[known]
    assert dataset.tasks[1].base_rate["train"] == pytest.approx(np.average(labels, weights=weights))


BAD_WEIGHTS = {"negative": -1.0, "NaN": float("nan"), "infinite": float("inf"), "null": None}


@pytest.mark.parametrize("bad", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
@pytest.mark.parametrize("of_task", [False, True])
def test_a_weight_that_is_no_number_of_0_or_more(tmp_path, bad, of_task):
    weights = pa.array([1.0] * 7 + [bad] + [1.0] * 392, pa.float64())
    text = recipe().replace('parent = "click"', 'row_weight = "w"') if of_task else recipe('weight = "w"')
    with pytest.raises(UserError) as caught:
        run(tmp_path, events(w=weights), text)
    for part in ("'buy': row_weight" if of_task else "weight", "'w'", "0.parquet, row 7", "finite number of 0 or more"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


BAD_RECIPES = {
    "weights that are all 0": ('weight = "zero"', "", ["'click'", "weigh 0"]),
    "a text as weight": ('weight = "user"', "", ["weight: column 'user' is VARCHAR", "a number"]),
    "no such weight": ('weight = "w8"', "", ["weight", "no column 'w8'"]),
    "a text as duration": ("", '[[task]]\nname="t"\nkind="duration"\nlabel="text"', ["'t': label", "VARCHAR"]),
    "a negative duration": (
        "",
        '[[task]]\nname="t"\nkind="duration"\nlabel="below"',
        ["'t': label", "row 399", "0 or more"],
    ),
    "a regression of infinity": ("", '[[task]]\nname="t"\nkind="regression"\nlabel="inf"', ["'inf' is inf", "finite"]),
    "a relation of a number": (
        "",
        '[[task]]\nname="t"\nkind="duration"\nlabel="zero"\nparent="click"',
        ["'t': parent", "kind binary", "is duration"],
    ),
    "a loss of a binary task": ("", '[[task]]\nname="t"\nlabel="click"\nloss="huber"', ["loss is for", "regression"]),
    "a transform of a duration": (
        "",
        '[[task]]\nname="t"\nkind="duration"\nlabel="zero"\ntransform="log1p"',
        ["transform is for tasks of kind regression", "duration"],
    ),
    "no such kind": ("", '[[task]]\nname="t"\nkind="ordinal"\nlabel="n"', ["kind", "'ordinal'"]),
    "an oracle of a number": (
        "",
        '[[task]]\nname="t"\nkind="regression"\nlabel="zero"\noracle="zero"',
        ["oracle is for"],
    ),
    "a share above 1": ("[sampling]\nkeep_negatives = 2", "", ["sampling.keep_negatives", "2"]),
    "no share": ("[sampling]\nkeep_negatives = 0", "", ["sampling.keep_negatives", "0"]),
}


@pytest.mark.parametrize(("top", "rest", "names"), BAD_RECIPES.values(), ids=BAD_RECIPES)
def test_what_is_wrong_is_one_line(tmp_path, top, rest, names):
    # Keys of the top level come before sections.
    top, section = ("", top) if top.startswith("[") else (top, "")
    columns = {
        "zero": pa.array(np.zeros(400)),
        "text": pa.array(["a"] * 400),
        "below": pa.array(399.0 - 400 * (np.arange(400) == 399) - np.arange(400)),
        "inf": pa.array(np.where(np.arange(400) == 9, np.inf, 1.0)),
    }
    with pytest.raises(UserError) as caught:
        run(tmp_path, events(**columns), recipe(top, rest + "\n" + section))
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_negatives_are_sampled_in_training_rows_alone(tmp_path, share):
    rows = 20_000
    table = events(rows, w=pa.array(np.arange(rows) % 3 + 1))
    (tmp_path / "all").mkdir()
    whole = run(tmp_path / "all", table, recipe('weight = "w"'))
    some = run(tmp_path, table, recipe('weight = "w"', f"[sampling]\nkeep_negatives = {share}"))
    assert some.keep_negatives == share
    for split in ("val", "test"):
        assert read(tmp_path, split).equals(read(tmp_path / "all", split))
    before, after = read(tmp_path / "all", "train"), read(tmp_path, "train")
    positive = pc.equal(before["label_click"], 1)
    kept = pc.equal(after["label_click"], 1)
    # All positives, as they were; a negative weighs as much as those it stands for.
    assert after.filter(kept).equals(before.filter(positive))
    negatives = after.filter(pc.invert(kept))
    wanted = share * (before.num_rows - pc.sum(positive).as_py())
    assert negatives.num_rows == pytest.approx(wanted, abs=4 * np.sqrt(wanted))
    weights = dict(zip(before["n"].to_pylist(), before["weight"].to_pylist(), strict=True))
    for n, weight in zip(negatives["n"].to_pylist(), negatives["weight"].to_pylist(), strict=True):
        assert weight == pytest.approx(weights[n] / share)
    # Ids are those of all rows, and so is the base rate, but for chance.
    assert some.tables == whole.tables
    assert some.tasks[0].base_rate["train"] == pytest.approx(whole.tasks[0].base_rate["train"], rel=0.05)
    again = run(tmp_path, table, recipe('weight = "w"', f"[sampling]\nkeep_negatives = {share}"), out="again")
    assert again == some


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32) | st.none(), min_size=20, max_size=60).filter(
        lambda values: sum(value is not None for value in values) > 15
    ),
    st.sampled_from(["none", "log1p"]),
)
def test_the_scale_of_a_target_is_that_of_the_training_labels(tmp_path_factory, values, transform):
    folder = tmp_path_factory.mktemp("regression")
    rows = len(values)
    rest = f'[[task]]\nname = "amount"\nkind = "regression"\nlabel = "amount"\ntransform = "{transform}"'
    text = recipe("", rest).replace("val = 0.2\ntest = 0.2", "val = 0.0\ntest = 0.0")
    dataset = run(folder, events(rows, amount=pa.array(values, pa.float32())), text)
    task = dataset.tasks[2]
    labels = read(folder, "train")["label_amount"]
    assert labels.type == pa.float32()
    known = labels.drop_null().to_numpy().astype(float)
    assert task.base_rate["train"] == pytest.approx(known.mean(), rel=1e-9, abs=1e-9)
    target = np.sign(known) * np.log1p(np.abs(known)) if transform == "log1p" else known
    assert task.mean == pytest.approx(target.mean(), rel=1e-6, abs=1e-6 * np.abs(target).max())
    assert task.std == pytest.approx(target.std() or 1.0, rel=1e-6)
    given_labels = dict(enumerate(pa.array(values, pa.float32()).to_pylist()))
    assert by_number(folder, "label_amount") == given_labels


def test_a_duration_is_scaled_by_its_mean(tmp_path):
    seconds = np.random.default_rng(0).exponential(30, 400)
    rest = '[[task]]\nname = "watch"\nkind = "duration"\nlabel = "seconds"'
    task = run(tmp_path, events(seconds=pa.array(seconds)), recipe("", rest)).tasks[2]
    labels = read(tmp_path, "train")["label_watch"].to_numpy()
    assert (task.mean, task.std) == (pytest.approx(labels.mean(), rel=1e-6), 1.0)
