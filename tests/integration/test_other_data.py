"""A run and the data it is given later: the same goes on, other data is refused or measured beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import evaluation, losses, read, steps

from recmtl import cli
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError
from recmtl.schema import Dataset

ROWS = 600
RECIPE = """
name = "shop"
sql = "select * from raw"
group = "user"
[[table]]
name = "item"
hash_rows = 50
[[feature]]
name = "item"
[[feature]]
name = "price"
kind = "numeric"
[[task]]
name = "click"
label = "clicked"
[[task]]
name = "buy"
label = "bought"
parent = "click"
[split]
by = "column"
column = "part"
"""
FLIPPED = RECIPE.replace("select *", "select * replace (not clicked as clicked)")
FLAGS = (
    *("--training.batch_size", "16", "--training.device", "cpu", "--training.patience", "0"),
    *("--metrics.every_steps", "1", "--metrics.tensorboard", "False"),
)
Run = Callable[..., subprocess.CompletedProcess[str]]


def prepared(folder: Path, *, recipe: str = RECIPE, seed: int = 0, rows: int = ROWS) -> Path:
    """Prepare random events: four in six for training, one each for validation and test."""
    rng = np.random.default_rng(seed)
    clicked = rng.random(rows) < 0.5
    columns = {
        "user": rng.integers(0, 30, rows),
        "item": rng.integers(0, 100, rows),
        "price": rng.random(rows),
        "clicked": clicked,
        "bought": clicked & (rng.random(rows) < 0.5),
        "part": np.array(["train", "train", "train", "train", "val", "test"])[np.arange(rows) % 6],
    }
    (folder / "raw").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "raw" / "0.parquet")
    (folder / "shop.toml").write_text(recipe)
    prepare(load_recipe(str(folder / "shop.toml")), folder / "raw", folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("shop"))


def words(data: Path, run: Path, *flags: str) -> list[str]:
    return ["esmm", "--data", str(data), "--run", str(run), *FLAGS, *flags]


@pytest.fixture(scope="module")
def train(run_recmtl: Run) -> Run:
    """`recmtl train` in a process of its own."""
    return lambda *args: run_recmtl("train", *words(*args))


@pytest.fixture(scope="module")
def trained(data: Path, train: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    ended = train(data, run, "--training.max_epochs", "2")
    assert ended.returncode == 0, ended.stderr
    return run


def evaluate(run: Path, data: Path) -> None:
    cli.evaluate([str(run), "--data", str(data)])


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the lock's, which names the process that held it last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_results_name_the_data(data, trained):
    dataset, results = Dataset.load(data), read(trained)
    assert results["data_fingerprint"] == dataset.data_fingerprint
    assert results["encoding_fingerprint"] == dataset.encoding_fingerprint
    assert Dataset.load(trained) == dataset


WEIGHT = RECIPE.replace('label = "bought"', 'label = "bought"\nweight = 2')
OTHERS = {
    "label": (RECIPE.replace('"clicked"', '"odd"').replace("*", "*, item % 2 as odd"), "label clicked, now odd"),
    "weight": (WEIGHT, "task 'buy': weight 1.0, now 2.0"),
    "parent": (RECIPE.replace('parent = "click"\n', ""), "task 'buy': parent click, now none"),
    "rows": (RECIPE.replace("from raw", "from raw where item > 1"), "rows in train 400, now"),
    "table": (RECIPE.replace("= 50", "= 60"), "the encoding of table 'item': rows 50, now 60"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_data_is_refused_before_the_run_is_called_finished(trained, tmp_path, name):
    """What differs is in the line, and the run stays as it is."""
    before, (recipe, difference) = contents(trained), OTHERS[name]
    other = prepared(tmp_path, recipe=recipe)
    with pytest.raises(UserError) as caught:
        cli.train(words(other, trained, "--training.max_epochs", "2"))
    message = str(caught.value)
    assert message.startswith(f"{other}: not the data that {trained} was trained on: ")
    assert difference in message
    assert "\n" not in message
    assert contents(trained) == before


def test_flipped_labels_under_the_same_name_are_refused(trained, train, tmp_path):
    before = contents(trained)
    other = prepared(tmp_path / "flipped", recipe=FLIPPED)
    ended = train(other, trained, "--training.max_epochs", "2")
    refused(ended, "split train differ (the recipe's sql is another); give that data, or name another --run folder")
    assert contents(trained) == before


def test_the_same_data_prepared_again_goes_on_bit_for_bit(data, trained, train, tmp_path):
    """From the middle of an epoch, on a copy prepared from the raw files in another place; then it is finished."""
    again = prepared(tmp_path / "elsewhere")
    run = tmp_path / "run"
    assert train(data, run, "--training.max_steps", "33").returncode == 0
    assert (steps(run)[-1], read(run)["steps"]) == (33, 33)
    ended = train(again, run, "--training.max_epochs", "2")
    assert ended.returncode == 0, ended.stderr
    assert losses(run) == losses(trained)
    assert read(run)["test"] == read(trained)["test"]
    ended = train(again, run, "--training.max_epochs", "2")
    assert ended.returncode == 0
    assert "finished already, after step 50" in ended.stderr


def test_shorter_data_under_a_run_in_mid_epoch_is_refused(data, train, tmp_path):
    run = tmp_path / "run"
    cli.train(words(data, run, "--training.max_steps", "20"))
    shorter = prepared(tmp_path / "shorter", rows=120)
    refused(train(shorter, run, "--training.max_steps", "40"), "rows in train 400, now 80")


def test_a_run_that_does_not_say_what_it_was_trained_on(data, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "dataset.json").unlink()
    for command in (lambda: cli.train(words(data, run)), lambda: evaluate(run, data)):
        with pytest.raises(UserError, match=f"{run / 'dataset.json'}: missing, so nothing says what data"):
            command()


def test_evaluation_of_all_splits(data, trained, run_recmtl):
    ended = run_recmtl("evaluate", trained, "--data", data, "--split", "all")
    assert ended.returncode == 0, ended.stderr
    heads = [line for line in ended.stdout.splitlines() if line.endswith(":")]
    assert heads == ["train:", "val:", "test:"]
    measured = {split: read(trained, evaluation(data, split)) for split in ("train", "val", "test")}
    assert {split: measured[split][split]["buy"]["rows"] for split in measured} == Dataset.load(data).rows
    for split in ("val", "test"):
        for task in ("click", "buy"):
            found, expected = (metrics[split][task] for metrics in (measured[split], read(trained)))
            assert found.pop("oracle_auc") is expected.pop("oracle_auc") is None
            assert found.pop("auc_folds") == expected.pop("auc_folds")
            assert found == pytest.approx(expected, rel=1e-9)
    assert {values["checkpoint"] for values in measured.values()} == {f"step-{25 * read(trained)['best_epoch']:09d}"}


def test_tomorrows_rows_are_measured_beside_todays(data, trained, tmp_path):
    """Of the same encoding, with weights and parents of their own: those of the run count, and its results stay."""
    recipe = RECIPE.replace('parent = "click"', "weight = 7")
    tomorrow = prepared(tmp_path / "tomorrow", recipe=recipe, seed=1, rows=900)
    for folder in (data, tomorrow):
        evaluate(trained, folder)
    today, then = (read(trained, evaluation(folder, "test")) for folder in (data, tomorrow))
    assert {path.name for path in (trained / "evaluations").glob("*-test.json")} == {
        f"{Dataset.load(folder).data_fingerprint}-test.json" for folder in (data, tomorrow)
    }
    assert (today["test"]["buy"]["rows"], then["test"]["buy"]["rows"]) == (100, 150)
    assert then["data_fingerprint"] == Dataset.load(tomorrow).data_fingerprint != today["data_fingerprint"]
    assert then["encoding_fingerprint"] == today["encoding_fingerprint"]


def test_the_labels_of_the_run_must_be_there(trained, tmp_path):
    start = RECIPE.index('[[task]]\nname = "buy"')
    recipe = RECIPE[:start] + RECIPE[RECIPE.index("[split]") :]
    other = prepared(tmp_path / "other", recipe=recipe)
    with pytest.raises(UserError, match=f"{other}: no task 'buy', which {trained} was trained on; add it to"):
        evaluate(trained, other)


def test_true_probabilities_and_groups_are_those_of_the_data(trained, tmp_path):
    """One folder has the first and no groups, the run's own has it the other way round."""
    recipe = RECIPE.replace('group = "user"\n', "").replace('"bought"', '"bought"\noracle = "p"')
    recipe = recipe.replace("select *", "select *, price as p")
    other = prepared(tmp_path / "other", recipe=recipe)
    evaluate(trained, other)
    measured = read(trained, evaluation(other, "test"))["test"]
    assert measured["buy"]["oracle_auc"] is not None
    assert measured["click"]["oracle_auc"] is None
    assert {task["gauc"] for task in measured.values()} == {None}
    for task in ("click", "buy"):
        assert measured[task]["auc"] == pytest.approx(read(trained)["test"][task]["auc"], rel=1e-9)


def test_a_killed_run_leaves_no_results_that_look_valid(data, trained, train, run_recmtl, tmp_path):
    """It was finished, went on with more epochs and was killed: the report names it and shows the other."""
    run = tmp_path / "killed"
    shutil.copytree(trained, run)
    command = [sys.executable, "-m", "recmtl", "train", "esmm", "--data", str(data), "--run", str(run), *FLAGS]
    command += ["--training.max_epochs", "100000", "--checkpoint.every_steps", "5", "--checkpoint.keep", "1000"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            while not (run / "checkpoints" / "step-000000060").exists():
                assert process.poll() is None
                time.sleep(0.02)
        finally:
            process.kill()
    assert not (run / "results.json").exists()
    step = max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))

    ended = run_recmtl("report", trained, run, "--out", tmp_path / "report")
    assert ended.returncode == 0
    assert [line.split(", without")[0] for line in ended.stderr.splitlines()] == [f"{run}: unfinished at step {step}"]
    assert f"| {run} | shop | esmm | unfinished | {step} |" in ended.stdout
    refused(run_recmtl("report", run, "--out", tmp_path / "none"), f"no run has results: {run}: unfinished")
    assert not (tmp_path / "none").exists()

    assert train(data, run, "--training.max_steps", str(step + 1), "--training.max_epochs", "100000").returncode == 0
    assert json.loads((run / "results.json").read_text())["steps"] == step + 1
    assert run_recmtl("report", trained, run, "--out", tmp_path / "report").stderr == ""


def test_two_seeds_on_other_labels_do_not_share_a_row(data, trained, tmp_path, capsys):
    other, run = prepared(tmp_path / "flipped", recipe=FLIPPED), tmp_path / "run"
    cli.train(words(other, run, "--training.max_epochs", "2", "--training.seed", "7"))
    capsys.readouterr()
    cli.report([str(trained), str(run), "--out", str(tmp_path / "report")])
    said = capsys.readouterr().out
    digits = [Dataset.load(folder).data_fingerprint[:8] for folder in (data, other)]
    headings = [line for line in said.splitlines() if line.startswith("##")]
    assert headings == [f"## shop ({some})" for some in digits]
    # Of two runs in one row it would be their deviation.
    assert "standard deviation" not in said
    assert said.count("± of a single run is the standard error") == 2
