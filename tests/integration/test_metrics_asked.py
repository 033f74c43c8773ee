"""Metrics as asked for, through the command line, on data of all kinds of tasks with missing labels and weights."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import words
from runs import evaluation, lines, read

from recmtl import cli
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError
from recmtl.metrics.segments import MOST_SEGMENTS
from recmtl.schema import Dataset

RECIPE = """
sql = "select * from raw"
group = "user"
weight = "weight"
segments = ["country", "tab"]
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "hashed"
column = "item"
[[feature]]
name = "words"
kind = "list"
[[table]]
name = "hashed"
hash_rows = 5
[[task]]
name = "click"
label = "clicked"
[[task]]
name = "rating"
label = "rating"
kind = "regression"
[[task]]
name = "time"
label = "seconds"
kind = "duration"
[[task]]
name = "never"
label = "never"
weight = 0.0
[split]
by = "column"
column = "part"
val = 0.0
"""
FLAGS = {
    "training.batch_size": 128,
    "training.max_epochs": 2,
    "training.patience": 0,
    "training.device": "cpu",
    "embedding.dim": 4,
}
ROWS = 1200


def raw_rows() -> pa.Table:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 150, ROWS), rng.integers(0, 40, ROWS)
    taste = rng.normal(size=150)[user] + rng.normal(size=40)[item]
    clicked = rng.random(ROWS) < 1 / (1 + np.exp(-taste))
    part = np.array(["train", "val", "test"])[rng.choice(3, ROWS, p=[0.6, 0.2, 0.2])]
    return pa.table(
        {
            "user": user,
            "item": item,
            "words": pa.array([["a"]] * ROWS),
            "country": pa.array(np.array(["DE", "FR", "IT"])[rng.integers(0, 3, ROWS)], mask=rng.random(ROWS) < 0.1),
            "tab": rng.integers(0, 30, ROWS),
            "clicked": pa.array(clicked.astype(np.int64), mask=rng.random(ROWS) < 0.2),
            "rating": pa.array(3 + taste + rng.normal(size=ROWS), mask=rng.random(ROWS) < 0.5),
            "seconds": pa.array(20 * np.exp(taste + rng.normal(size=ROWS))),
            # Without a label outside of the training rows.
            "never": pa.array(clicked.astype(np.int64), mask=part != "train"),
            "weight": rng.uniform(0.5, 2, ROWS),
            "part": pa.array(part),
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    (folder / "raw").mkdir()
    pq.write_table(raw_rows(), folder / "raw" / "0.parquet")
    (folder / "shop.toml").write_text(RECIPE)
    prepare(load_recipe(str(folder / "shop.toml")), folder / "raw", folder / "data")
    return folder / "data"


def train(data: Path, run: Path, *chosen: str) -> dict:
    cli.train(["mmoe", "--data", str(data), "--run", str(run), *words(FLAGS), *chosen])
    return read(run)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asked") / "run"
    train(data, folder, "--metrics.by", "country", "tab", "user")
    return folder


def test_every_kind_of_task_is_measured_on_its_labels(data, run):
    results, dataset = read(run), Dataset.load(data)
    observed = {task.name: task.observed for task in dataset.tasks}
    for split in ("val", "test"):
        for task, metrics in results[split].items():
            assert metrics["rows"] == observed[task].get(split, 0)
        assert results[split]["click"]["base_rate"] == pytest.approx(dataset.tasks[0].base_rate[split])
        for task in ("rating", "time"):
            metrics = results[split][task]
            assert all(math.isfinite(value) for value in metrics.values())
            assert 0.3 < metrics["xauc"] < 1
        mean = next(task.base_rate[split] for task in dataset.tasks if task.name == "time")
        assert results[split]["time"]["mean_label"] == pytest.approx(mean, rel=1e-6)
        never = results[split]["never"]
        assert {value for name, value in never.items() if name not in ("rows", "positives")} == {None}
    assert results["logloss_sum"] == results["test"]["click"]["logloss"]
    # What early stopping looks at: the losses of all kinds, by their weights.
    best = next(line for line in lines(run) if line.get("epoch") == results["best_epoch"] and "val/loss" in line)
    wanted = sum(
        results["val"][task][loss] for task, loss in (("click", "logloss"), ("rating", "loss"), ("time", "loss"))
    )
    assert best["val/loss"] == pytest.approx(wanted, rel=1e-12)
    assert best["val/time/mae"] == results["val"]["time"]["mae"]
    assert "test/never/auc" in lines(run)[-1]


def test_segments_are_values_that_people_read(data, run):
    segments, test = read(run)["segments"]["test"], pq.read_table(next((data / "test").iterdir()))
    rows, country = len(test), test["segment_country"].to_pylist()
    assert {s["value"]: s["rows"] for s in segments["country"]["values"]} == {
        name or "missing": country.count(name) for name in ("DE", "FR", "IT", None)
    }
    clicked = test["label_click"].to_pylist()
    for segment in segments["country"]["values"]:
        inside = [c for c, name in zip(clicked, country, strict=True) if (name or "missing") == segment["value"]]
        click = segment["tasks"]["click"]
        assert (click["rows"], click["positives"]) == (len(inside) - inside.count(None), inside.count(1))
        assert math.isfinite(click["auc"] + click["logloss"] + click["calibration"])
        assert math.isfinite(segment["tasks"]["time"]["mae"] + segment["tasks"]["time"]["bias"])
    tab = segments["tab"]
    assert len(tab["values"]) == MOST_SEGMENTS
    assert tab["left_out"] == len(set(test["segment_tab"].to_pylist())) - MOST_SEGMENTS
    assert tab["left_out_rows"] + sum(segment["rows"] for segment in tab["values"]) == rows
    # Ids of a feature are led back to its values.
    assert {segment["value"] for segment in segments["user"]["values"]} <= {*map(str, range(150)), "missing", "unseen"}


def test_evaluate_prints_a_table_a_kind_and_the_segments(data, run, capsys):
    cli.evaluate([str(run), "--data", str(data), "--split", "val"])
    tables = [table.splitlines() for table in capsys.readouterr().out.strip().split("\n\n")]
    assert [line.split()[0] for line in tables[0]] == ["task", "click", "never"]
    assert tables[0][2].split()[1:] == ["n/a"] * 8 + ["0"]
    assert [line.split()[0] for line in tables[1]] == ["task", "rating", "time"]
    assert tables[1][0].split()[1:] == ["MAE", "±", "RMSE", "±", "R²", "XAUC", "bias", "mean", "rows"]
    assert [table[0].split(" by ")[0] for table in tables[2:6]] == ["click", "rating", "time", "never"]
    assert tables[2][0].split()[1:3] == ["by", "country"]
    assert {line.split()[0] for line in tables[2][1:]} == {"DE", "FR", "IT", "missing"}
    assert tables[6][-1].split()[1:3] == ["more", "values,"]
    measured = read(run, evaluation(data, "val"))
    assert set(measured["segments"]["val"]) == {"country", "tab", "user"}
    assert measured["val"]["time"] == pytest.approx(read(run)["val"]["time"], rel=1e-6)


def prepare_other(data: Path, folder: Path, recipe: str) -> Path:
    """The same raw files by another recipe."""
    (folder / "other.toml").write_text(recipe)
    prepare(load_recipe(str(folder / "other.toml")), data.parent / "raw", folder / "other")
    return folder / "other"


def test_other_data_is_measured_by_its_own_labels_and_weights(data, run, tmp_path, capsys):
    """The run was trained on a time in every row and without weights for a task."""
    sql = "select * replace (case when tab < 15 then seconds end as seconds) from raw"
    recipe = RECIPE.replace('"select * from raw"', f'"{sql}"').replace('weight = "weight"\n', "")
    other = prepare_other(
        data, tmp_path, recipe.replace('label = "clicked"', 'label = "clicked"\nrow_weight = "weight"')
    )
    cli.evaluate([str(run), "--data", str(other), "--by", "tab, country"])
    assert "click by tab" in capsys.readouterr().out
    measured = read(run, evaluation(other, "test"))
    assert list(measured["segments"]["test"]) == ["tab", "country"]
    rows = pq.read_table(next((other / "test").iterdir()))
    seconds = rows["label_time"].drop_null().to_numpy()
    assert measured["test"]["time"]["rows"] == len(seconds) < len(rows)
    assert measured["test"]["time"]["mean_label"] == pytest.approx(seconds.mean(dtype=float), rel=1e-6)  # no weights
    clicked = rows.filter(rows["label_click"].is_valid())
    rate = np.average(clicked["label_click"], weights=clicked["weight_click"])
    assert measured["test"]["click"]["base_rate"] == pytest.approx(rate, rel=1e-6)


def test_a_task_of_another_kind_is_refused(data, run, tmp_path):
    other = prepare_other(data, tmp_path, RECIPE.replace('kind = "duration"', 'kind = "regression"'))
    with pytest.raises(UserError, match=r"task 'time' is regression, and .* was trained on a duration one; give data"):
        cli.evaluate([str(run), "--data", str(other)])


def best_epochs(run: Path, key: str) -> tuple[list[float], int]:
    """A metric of every epoch, and the best one by the results."""
    return [line[key] for line in lines(run) if key in line], read(run)["best_epoch"]


@pytest.mark.parametrize(("monitor", "best"), [("click.auc", max), ("time.mae", min), ("rating.xauc", max)])
def test_the_best_epoch_is_that_of_what_is_monitored(data, tmp_path, capsys, monitor, best):
    chosen = ["--metrics.monitor", monitor, "--training.max_epochs", "5", "--embedding.lr", "1.0"]
    train(data, tmp_path / "run", *chosen)
    values, epoch = best_epochs(tmp_path / "run", f"val/{monitor.replace('.', '/')}")
    assert len(values) == 5
    assert values.index(best(values)) == epoch - 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"epoch {epoch} ")]
    assert f"{monitor} {best(values):.4f}" in said[-1]


def test_a_sum_is_monitored_each_metric_by_its_direction_and_patience_counts_by_it(data, tmp_path):
    config = tmp_path / "asked.toml"
    monitor = '[metrics.monitor]\n"click.auc" = 100.0\n"time.mae" = 0.01\n'
    config.write_text(f'[model]\nname = "mmoe"\n\n{monitor}')
    chosen = words({**FLAGS, "training.max_epochs": 8, "training.patience": 1, "embedding.lr": 1.0})
    cli.train([str(config), "--data", str(data), "--run", str(tmp_path / "run"), *chosen])
    found = [line for line in lines(tmp_path / "run") if "val/loss" in line]
    sums = [100 * line["val/click/auc"] - 0.01 * line["val/time/mae"] for line in found]
    assert [line["val/monitor"] for line in found] == pytest.approx(sums)
    best = read(tmp_path / "run")["best_epoch"]
    assert sums.index(max(sums)) == best - 1
    assert len(sums) == min(best + 1, 8)
    with pytest.raises(UserError, match=r"the run has metrics.monitor \{.*\}, not \{\}; go on with that"):
        cli.train(["mmoe", "--data", str(data), "--run", str(tmp_path / "run"), *chosen])


def test_only_what_is_asked_for_is_measured(data, tmp_path):
    results = train(data, tmp_path / "run", "--metrics.include", "calibration", "mae", "--metrics.monitor", "click.ne")
    for split in ("val", "test"):
        click, time = results[split]["click"], results[split]["time"]
        assert {name for name, value in click.items() if value is None} == {
            *("auc", "auc_se", "auc_folds", "gauc", "oracle_auc")
        }
        assert {name for name, value in time.items() if value is None} == {
            "rmse",
            "rmse_se",
            "r2",
            "r2_se",
            "xauc",
            "bias",
        }


def test_without_validation_labels_the_newest_epoch_is_the_best(data, tmp_path):
    results = train(data, tmp_path / "run", "--training.tasks", "click", "never", "--training.max_epochs", "1")
    assert results["best_epoch"] == 1
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    for path in (folder / "val").iterdir():
        table = pq.read_table(path)
        nulls = pa.array([None] * len(table), pa.int8())
        pq.write_table(table.set_column(table.schema.get_field_index("label_click"), "label_click", nulls), path)
    results = train(folder, tmp_path / "other", "--training.tasks", "click", "--training.patience", "1")
    assert (results["epochs"], results["best_epoch"]) == (2, 2)


MISTAKES = {
    "monitor without a metric": (["--metrics.monitor", "click"], "write TASK.METRIC, such as click.logloss"),
    "unknown task": (["--metrics.monitor", "clik.auc"], "no task 'clik' is trained; did you mean 'click'?"),
    "task that is not trained": (
        ["--training.tasks", "time", "--metrics.monitor", "click.auc"],
        "no task 'click' is trained; choose one of time",
    ),
    "unknown metric": (["--metrics.monitor", "click.aucc"], "'aucc' is no metric of a binary task"),
    "metric of another kind": (["--metrics.monitor", "time.auc"], "'auc' is no metric of a duration task"),
    "no direction": (
        ["--metrics.monitor", "click.calibration"],
        "'calibration' is no metric of a binary task that has",
    ),
    "no label": (["--metrics.monitor", "never.auc"], "no validation row has a label of 'never'"),
    "weight of 0": (["--metrics.monitor", "click.auc", "0"], "--metrics.monitor: write one name, or names and numbers"),
    "unknown included metric": (["--metrics.include", "auc", "gaucc"], "no metric 'gaucc'; did you mean 'gauc'?"),
    "unknown segment": (["--metrics.by", "contry"], "no feature or segment 'contry'; did you mean 'country'?"),
    "list": (["--metrics.by", "words"], "feature 'words' is of kind list, and no value tells its rows apart"),
    "hashed": (["--metrics.by", "hashed"], "feature 'hashed' is hashed, and no value tells its rows apart"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_wish_is_one_line_before_training(data, tmp_path, name):
    chosen, message = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        train(data, tmp_path / "run", *chosen)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_wrong_wish_ends_the_command_with_2(run_recmtl, data, tmp_path):
    done = run_recmtl("train", "mmoe", "--data", data, "--run", tmp_path / "run", "--metrics.monitor", "like.auc")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: metrics.monitor: 'like.auc': no task 'like' is trained; choose one of click, rating, time, never"
    )


def test_ranks_measure_the_same(run_recmtl, data, run, tmp_path):
    """Of the same model; the sums of two ranks round otherwise."""
    done = run_recmtl("evaluate", run, "--data", data, "--split", "test", ranks=2)
    assert done.returncode == 0, done.stderr
    measured, results = read(run, evaluation(data, "test")), read(run)
    for task in ("click", "rating", "time"):
        for name, value in results["test"][task].items():
            if isinstance(value, float):
                assert measured["test"][task][name] == pytest.approx(value, rel=1e-5), name
    found = json.dumps([[s["value"], s["rows"]] for s in measured["segments"]["test"]["tab"]["values"]])
    assert found == json.dumps([[s["value"], s["rows"]] for s in results["segments"]["test"]["tab"]["values"]])


def test_the_model_card_has_a_table_for_each_kind_of_task(run, tmp_path):
    cli.export([str(run), str(tmp_path / "export")])
    card, test = (tmp_path / "export" / "README.md").read_text(), read(run)["test"]
    assert "a probability of click, never and a number, in the label's unit, of rating, time for every row" in card
    binary, numbers = card.split("## Tasks")[1].split("## Model")[0].split("| task | MAE |")
    click, time = test["click"], test["time"]
    assert f"| click | {click['auc']:.4f} ± {click['auc_se']:.4f} | {click['logloss']:.4f} |" in binary
    assert "| never | n/a | n/a | n/a | n/a |" in binary
    assert (
        f"| time | {time['mae']:.4f} ± {time['mae_se']:.4f} | {time['rmse']:.4f} ± {time['rmse_se']:.4f} |" in numbers
    )
