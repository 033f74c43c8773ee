"""`recmtl predict` equals what `recmtl evaluate` measures, row by row, from a run and from an export."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from trained import LABELS, OF_ALL_KINDS, ROWS, evaluated, raw_rows, train, write_data, write_raw

import recmtl
from recmtl import cli
from recmtl.config import MODELS
from recmtl.errors import UserError

FAST = ("esmm", "stem")
"""A model with conditional probabilities, and one with several copies of every table."""
TOLERANCE = RTOL = 1e-6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def of_all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all kinds")
    write_data(folder, OF_ALL_KINDS)
    return folder


def read(folder: Path) -> pa.Table:
    return pa.concat_tables(map(pq.read_table, sorted(folder.glob("part-*.parquet"))))


def by_number(table: pa.Table, names: list[str]) -> np.ndarray:
    """Columns of the rows in the order of their numbers."""
    ordered = table.sort_by("number")
    return np.stack([ordered[name].to_numpy() for name in names], axis=1)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_predictions_are_those_of_the_evaluation(run_recmtl, root, tmp_path, name):
    tasks = ["p_click"] if name == "single_task" else ["p_click", "p_like"]
    extra = ["p_like_given_click"] if name in ("esmm", "escm2") else []
    outputs = check_predictions(run_recmtl, root, tmp_path, name, tasks, extra)
    if extra:
        click, like, given = by_number(outputs, [*tasks, *extra]).T
        np.testing.assert_allclose(given, like / click, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "single_task"]
)
def test_numbers_are_predicted_in_the_unit_of_their_labels(run_recmtl, of_all_kinds, tmp_path, name):
    """Beside probabilities, one of them of a label that is conditional: it is no product of others."""
    outputs = check_predictions(
        run_recmtl, of_all_kinds, tmp_path, name, ["p_click", "p_like", "p_watch", "p_paid"], []
    )
    assert pc.min(outputs["p_watch"]).as_py() > 0


def check_predictions(
    run_recmtl, root: Path, tmp_path: Path, name: str, tasks: list[str], extra: list[str]
) -> pa.Table:
    """A run, on one rank and on two, its export and `recmtl.load` must all predict what the evaluation measures.

    Args:
        run_recmtl: the fixture.
        root: folder of the raw and the prepared data.
        tmp_path: where to work.
        name: of the preset.
        tasks: columns of the predictions.
        extra: columns of conditional probabilities beside them.

    Returns:
        The predictions of the export.
    """
    run, export = train(root / "data", tmp_path / "run", name), tmp_path / "export"
    found = evaluated(root / "data", run)
    wanted = np.stack([found[number] for number in range(ROWS)])
    assert wanted.std(0).min() > 1e-3
    cli.export([str(run), str(export)])

    outputs = {}
    for kind, model, ranks in (("run", run, 1), ("two ranks", run, 2), ("export", export, 1)):
        out = tmp_path / "out" / kind
        if kind == "run":
            cli.predict([str(run), str(root / "raw"), str(out), "--conditional"])
        else:
            ended = run_recmtl("predict", model, root / "raw", out, "--conditional", ranks=ranks)
            assert ended.returncode == 0, ended.stderr
            assert ended.stdout == f"{out}: {ROWS:,} rows\n"
            assert "Traceback" not in ended.stderr
        outputs[kind] = read(out)
    for kind, table in outputs.items():
        np.testing.assert_allclose(by_number(table, tasks), wanted, rtol=RTOL, atol=TOLERANCE, err_msg=kind)
        assert all(table[task].type == pa.float32() for task in tasks)
        others = [column for column in table.column_names if column.startswith("p_") and column not in tasks]
        assert others == extra

    # Single rows of the query's columns, in Python.
    model = recmtl.load(export)
    query = outputs["export"].slice(0, 12)
    lists = {row["number"]: row for row in raw_rows().to_pylist()}
    for row in query.to_pylist():
        row |= {name: lists[row["number"]][name] for name in ("words", "items")}  # lists are not kept
        one = model.predict({name: [row[name]] for name in model.features})
        np.testing.assert_allclose([one[t][0].as_py() for t in tasks], wanted[row["number"]], rtol=RTOL, atol=TOLERANCE)
    return outputs["export"]


@pytest.fixture
def predict(esmm):
    """`recmtl predict EXPORT RAW OUT ...` within this process, on a table as raw files: exit code, stderr, OUT."""

    def run(folder: Path, table: pa.Table, *options: object) -> tuple[int, str, Path]:
        raw, out = write_raw(folder / "raw", table), folder / "out"
        with redirect_stderr(io.StringIO()) as said:
            try:
                cli.predict([str(esmm / "export"), str(raw), str(out), *map(str, options)])
            except UserError as error:
                return 2, f"{said.getvalue()}error: {error}\n", out
        return 0, said.getvalue(), out

    return run


def refused(outcome: tuple[int, str, Path], *words: str) -> None:
    """One line, exit code 2, and nothing written."""
    code, said, out = outcome
    assert code == 2, said
    [line] = said.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert [path.name for path in out.parent.iterdir()] == ["raw"]


def test_without_labels_and_what_only_they_need(predict, tmp_path, esmm, run_recmtl):
    code, said, out = predict(tmp_path, raw_rows().drop_columns(list(LABELS)))
    assert code == 0, said
    assert "not kept: clicked, liked; the raw files lack 'clicked', 'liked'" in said
    found = read(out)
    assert not set(LABELS) & set(found.column_names)
    ended = run_recmtl("predict", esmm / "export", esmm / "raw", tmp_path / "with labels")
    assert ended.returncode == 0, ended.stderr
    whole = read(tmp_path / "with labels")
    assert set(whole.column_names) == {
        *raw_rows().column_names,
        "previous",
        "place",
        "filename",
        "file_row_number",
        "p_click",
        "p_like",
    } - {
        "words",
        "items",
    }
    names = ["number", "p_click", "p_like"]
    np.testing.assert_allclose(by_number(found, names), by_number(whole, names), rtol=0, atol=TOLERANCE)


def test_the_files_order_where_there_is_no_window(run_recmtl, tmp_path):
    recipe = """
sql = "select *, number / 1024.0::double as place from raw"
[[feature]]
name = "place"
kind = "numeric"
[[feature]]
name = "item"
[[task]]
name = "click"
label = "clicked"
[split]
val = 0.2
test = 0.2
"""
    data = write_data(tmp_path, recipe)
    run = train(data, tmp_path / "run", "shared_bottom")
    out = tmp_path / "out"
    ended = run_recmtl("predict", run, tmp_path / "raw", out, "--keep", "number, item", ranks=2)
    assert ended.returncode == 0, ended.stderr
    table = read(out)
    assert table.column_names == ["number", "item", "p_click"]
    assert table["number"].to_pylist() == list(range(ROWS))
    # Without a [split] column there are no times.
    ended = run_recmtl("predict", run, tmp_path / "raw", tmp_path / "since", "--since", "2026-01-01")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "--since: " in ended.stderr
    assert "names no [split] column to tell times by; add one" in ended.stderr


@pytest.mark.parametrize("model", ["export", "run"])
def test_threads_change_no_byte(esmm, tmp_path, model):
    """A query with a window, on rows enough for several threads, gives them in the files' order."""
    raw, written = write_raw(tmp_path / "raw", raw_rows(60_000)), []
    for number, threads in enumerate((1, 4, 4)):
        out = tmp_path / f"out {number}"
        cli.predict([str(esmm / model), str(raw), str(out), "--keep", "number,item", "--threads", str(threads)])
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0] == written[1] == written[2]
    assert read(out)["number"].to_pylist() == list(range(60_000))


def test_since_scores_later_rows_whose_windows_see_all(predict, tmp_path, esmm):
    moment = raw_rows()["seen"][300].as_py()
    code, said, out = predict(tmp_path, raw_rows(), "--since", moment, "--keep", "number,previous,seen")
    assert code == 0, said
    found = read(out)
    assert sorted(found["number"].to_pylist()) == list(range(300, ROWS))
    assert pc.min(found["seen"]).as_py() == moment
    cli.predict([str(esmm / "export"), str(esmm / "raw"), str(tmp_path / "all")])
    every = {row["number"]: row for row in read(tmp_path / "all").to_pylist()}
    for row in found.to_pylist():
        assert row["previous"] == every[row["number"]]["previous"]
        assert row["p_like"] == pytest.approx(every[row["number"]]["p_like"], abs=TOLERANCE)
    assert found["previous"].null_count < len(found) / 2


def test_no_rows_are_a_file_without_rows(predict, tmp_path):
    code, said, out = predict(tmp_path, raw_rows(), "--since", "2100-01-01")
    assert code == 0, said
    assert read(out).num_rows == 0
    assert "p_like" in read(out).column_names


@pytest.mark.parametrize("absent", ["item", "seen", "user", "words"])
def test_a_feature_that_lacks_its_column_is_named(predict, tmp_path, absent):
    feature = {"seen": "previous", "user": "user"}.get(absent, absent)
    outcome = predict(tmp_path, raw_rows().drop_columns([absent]))
    refused(outcome, f"the files of source 'raw' lack the column '{absent}', and feature '{feature}' needs it; add it")


def test_what_decides_which_rows_there_are_is_named(run_recmtl, tmp_path):
    recipe = (
        "sql = 'select * from raw where clicked < 2'\n[[feature]]\nname = 'item'\n"
        "[[task]]\nname = 'like'\nlabel = 'liked'\n[split]\nval = 0.2\ntest = 0.2\n"
    )
    run = train(write_data(tmp_path, recipe), tmp_path / "run", "shared_bottom")
    raw = write_raw(tmp_path / "new", raw_rows().drop_columns(["clicked"]))
    ended = run_recmtl("predict", run, raw, tmp_path / "out")
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert "lack the column 'clicked', and sql needs it to tell which rows there are; add it" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep", "numbr"), ("--keep: ", "sql yields no column 'numbr'; did you mean 'number'?")),
        (("--since", "yesterday"), ("--since: 'yesterday' is no TIMESTAMP", "which column 'seen' is")),
        (("--keep", "number,clicked"), ("--keep: column 'clicked' is made of 'clicked', which the raw files lack",)),
        (("--memory-limit", "much"), ("much",)),
    ],
)
def test_a_mistake_is_one_line(predict, tmp_path, options, words):
    refused(predict(tmp_path, raw_rows().drop_columns(["clicked"]), *options), *words)


def test_a_column_called_as_what_is_predicted(predict, tmp_path):
    table = raw_rows().append_column("p_like", pa.array(np.zeros(ROWS)))
    refused(predict(tmp_path, table), "column 'p_like' is also what is predicted; call it otherwise in sql")


def test_a_column_of_another_type(predict, tmp_path):
    table = raw_rows()
    text = table.set_column(table.column_names.index("item"), "item", pc.cast(table["item"], pa.string()))
    refused(predict(tmp_path, text), "column 'item' is string, and the model was trained on int64; cast it")


def test_output_that_exists_and_a_model_that_does_not(run_recmtl, esmm, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    for model, out, words in (
        (esmm / "export", tmp_path / "out", "exists and is not empty"),
        (tmp_path / "nowhere", tmp_path / "new", "no config.toml in it"),
        (esmm / "data", tmp_path / "new", "no config.toml in it"),
    ):
        ended = run_recmtl("predict", model, esmm / "raw", out)
        assert ended.returncode == 2, ended.stderr
        assert len(ended.stderr.splitlines()) == 1
        assert words in ended.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert not (tmp_path / "new").exists()
