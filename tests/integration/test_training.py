"""Training through the command line: alike on one rank and two, killed and resumed, and the files a run leaves."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import words
from runs import EPOCH, FLAGS, TRAIN_ROWS, evaluation, flat, lines, losses, read, steps, train_here, write_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recmtl import cli
from recmtl.config import MODELS

NUMBERS = {
    *("auc", "auc_se", "gauc", "oracle_auc", "logloss", "logloss_se", "ne", "calibration", "base_rate", "positives"),
    "rows",
}


def assert_same_metrics(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    for split in ("val", "test"):
        a, b = read(one)[split], read(other)[split]
        assert set(a) == set(b) == {"click", "like"}
        for task in a:
            assert flat(a[task]) == pytest.approx(flat(b[task]), rel=tolerance)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="module")
def start(data, run_recmtl, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run `recmtl train` in real processes; the folder keeps what they said."""

    def start(run: Path | None = None, *, preset: object = "mmoe", ranks: int = 1, **flags: Any) -> Path:
        run = run or tmp_path_factory.mktemp("runs") / "run"
        flags = FLAGS | {key.replace("__", "."): value for key, value in flags.items()}
        ended = run_recmtl("train", preset, "--data", data, "--run", run, *words(flags), ranks=ranks)
        assert ended.returncode == 0, ended.stderr
        (run / "stdout").write_text(ended.stdout)
        (run / "stderr").write_text(ended.stderr)
        return run

    return start


@pytest.fixture(scope="module")
def one(start) -> Path:
    return start()


@pytest.fixture(scope="module")
def two(start) -> Path:
    return start(ranks=2)


def as_killed_after(run: Path, step: int, to: Path) -> Path:
    """What the disk would hold had a run been killed before its next checkpoint after `step`."""
    shutil.copytree(run, to)
    (to / "results.json").unlink()
    for later in steps(to):
        if later > step:
            shutil.rmtree(to / "checkpoints" / f"step-{later:09d}")
    assert steps(to)[-1] == step
    return to


def test_one_and_two_ranks_train_alike(one, two):
    assert len(losses(one)) == 2 * EPOCH
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert losses(one)[-1] < 0.95 * losses(one)[0]
    assert_same_metrics(one, two)
    assert read(one)["test"]["click"]["rows"] == read(two)["test"]["click"]["rows"] == 501
    assert (read(one)["world_size"], read(two)["world_size"]) == (1, 2)


def test_the_model_learns(one):
    for task in read(one)["test"].values():
        assert task["oracle_auc"] > task["auc"] > 0.65
        assert task["ne"] < 0.95


@pytest.mark.parametrize(("before", "after", "step"), [("one", 2, 20), ("two", 1, 60)])
def test_a_killed_run_goes_on_with_another_number_of_ranks(request, start, tmp_path, before, after, step):
    """From the middle of the first or the second epoch; as if it had never stopped."""
    undisturbed = request.getfixturevalue(before)
    resumed = start(as_killed_after(undisturbed, step, tmp_path / "run"), ranks=after)
    assert losses(resumed) == pytest.approx(losses(undisturbed), rel=1e-4)
    assert losses(resumed) != losses(undisturbed)  # it did run; sums over ranks round differently
    assert_same_metrics(undisturbed, resumed)
    assert steps(resumed) == steps(undisturbed)
    assert read(resumed)["steps"] == 2 * EPOCH


def test_killing_the_process_loses_no_step(data, one, tmp_path):
    """SIGKILL at some moment after a checkpoint; the run is long enough not to end before."""
    run = tmp_path / "run"
    flags = FLAGS | {"training.max_epochs": 1000, "checkpoint.keep": 2}
    command = [sys.executable, "-m", "recmtl", "train", "mmoe", "--data", str(data), "--run", str(run)]
    process = subprocess.Popen(
        [*command, *words(flags)], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    while not (run / "checkpoints" / "step-000000020").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = max(int(path.parent.name[5:]) for path in run.glob("checkpoints/step-*/train_state.json"))
    train_here(
        data, run, **{key.replace(".", "__"): value for key, value in flags.items()}, training__max_steps=last + 30
    )
    assert len(losses(run)) == last + 30
    shared = min(last + 30, 2 * EPOCH)
    assert losses(run)[:shared] == pytest.approx(losses(one)[:shared], rel=1e-4)


def test_a_finished_run_can_be_trained_further(data, one, tmp_path):
    """Stopped in the middle of the second epoch by max_steps, then without that limit."""
    run = tmp_path / "run"
    short = train_here(data, run, training__max_steps=EPOCH + 10)
    assert short["steps"] == EPOCH + 10
    assert len(losses(run)) == EPOCH + 10
    train_here(data, run)
    assert losses(run) == pytest.approx(losses(one), rel=1e-6)
    assert read(run)["test"]["click"]["auc"] == pytest.approx(read(one)["test"]["click"]["auc"], rel=1e-4)


def test_starting_a_finished_run_again_changes_nothing(data, one, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(one, run)
    train_here(data, run)
    assert losses(run) == losses(one)
    assert read(run)["test"] == read(one)["test"]
    assert read(run)["steps"] == read(one)["steps"]


@pytest.fixture(scope="module")
def one_with_adagrad(data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "adagrad"
    # With the default eps of 1e-8 Adagrad's first step on a weight is ±lr even where its gradient is rounding noise.
    train_here(data, run, embedding__optimizer="adagrad", embedding__eps=1e-3, sharding__type="table_wise")
    return run


def test_tables_cut_by_columns_and_replicated_ones_train_alike(start, one_with_adagrad, tmp_path):
    """With Adagrad, whose state does not care where a row is cut."""
    config = tmp_path / "mixed.toml"
    config.write_text('[model]\nname = "mmoe"\n[sharding.tables]\nuser = "data_parallel"\n')
    flags = {"embedding__optimizer": "adagrad", "embedding__eps": 1e-3, "sharding__type": "column_wise"}
    run = start(preset=config, ranks=2, **flags)
    shards = read(run, "plan.json")["shards"]
    placed = {(shard["table"], shard["sharding"], shard["dim"], shard["rank"]) for shard in shards}
    assert placed == {
        *((table, "column_wise", 8, rank) for table in ("item", "tag") for rank in (0, 1)),
        *(("user", "data_parallel", 16, rank) for rank in (0, 1)),
    }
    assert losses(run)[0] == pytest.approx(losses(one_with_adagrad)[0], rel=1e-6)
    assert losses(run) == pytest.approx(losses(one_with_adagrad), rel=1e-4)
    assert_same_metrics(run, one_with_adagrad)


def test_tables_replicated_and_sharded_side_by_side(data, one, tmp_path):
    tables = tmp_path / "mixed.toml"
    tables.write_text('[model]\nname = "mmoe"\n[sharding.tables]\nuser = "data_parallel"\nitem = "table_wise"\n')
    train_here(data, tmp_path / "run", str(tables))
    kinds = {shard["table"]: shard["sharding"] for shard in read(tmp_path / "run", "plan.json")["shards"]}
    assert kinds == {"user": "data_parallel", "item": "table_wise", "tag": "table_wise"}
    assert losses(tmp_path / "run") == pytest.approx(losses(one), rel=1e-4)


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_normal_run_says_only_what_concerns_its_user(request, name):
    run = request.getfixturevalue(name)
    said = (run / "stderr").read_text()
    assert "Warning" not in said
    assert [line for line in said.splitlines() if not line.startswith(("epoch ", "test "))] == []
    assert len([line for line in said.splitlines() if "validation loss" in line]) == 2
    table = (run / "stdout").read_text().splitlines()
    assert [line.split()[0] for line in table] == ["task", "click", "like"]


def test_results_hold_the_contracts_fields(one):
    results = read(one)
    # DESIGN: the fields that scripts depend on; steps, start_from, calibration_bins, segments, seconds, gauc are more.
    assert list(results) == [
        *("model", "dataset", "data_fingerprint", "encoding_fingerprint", "world_size", "device"),
        *("seed", "epochs", "best_epoch", "steps", "start_from", "test", "val"),
        *("logloss_sum", "calibration_bins", "segments", "train_val_seconds", "seconds", "examples_per_second"),
        *("peak_memory_bytes", "versions", "config_sha256"),
    ]
    fixed = {"model": "mmoe", "dataset": "toy", "world_size": 1, "device": "cpu", "seed": 100, "epochs": 2, "steps": 94}
    assert {key: results[key] for key in fixed} == fixed
    for split in ("test", "val"):
        assert set(results[split]) == {"click", "like"}
        for task in results[split].values():
            assert set(task) == {*NUMBERS, "auc_folds"}
            assert len(task["auc_folds"]) == 100
            assert all(math.isfinite(task[name]) for name in NUMBERS)
    assert results["logloss_sum"] == pytest.approx(sum(task["logloss"] for task in results["test"].values()))
    assert results["train_val_seconds"] > 0
    assert results["examples_per_second"] > 0
    assert results["peak_memory_bytes"]["device"] is None
    assert 2**26 < results["peak_memory_bytes"]["host"] < 2**36
    assert {"python", "torch", "torchrec", "fbgemm", "recmtl"} <= set(results["versions"])
    assert len(results["config_sha256"]) == 64


@pytest.mark.parametrize("name", ["one", "two"])
def test_calibration_bins_hold_every_row_once(request, name):
    results = read(request.getfixturevalue(name))
    for split, rows in (("test", 501), ("val", 400)):
        assert set(results["calibration_bins"][split]) == {"click", "like"}
        for task, bins in results["calibration_bins"][split].items():
            metrics = results[split][task]
            assert sum(bins["rows"]) == metrics["rows"] == rows
            assert sum(bins["positives"]) == pytest.approx(metrics["base_rate"] * rows)
            expected = sum(p * n for p, n in zip(bins["prediction"], bins["rows"], strict=True))
            assert expected / sum(bins["positives"]) == pytest.approx(metrics["calibration"])
            assert len(bins["rows"]) == 20


def test_seconds_say_where_the_time_went(data, one, tmp_path):
    """Also of a run that was stopped and resumed."""
    train_here(data, tmp_path / "run", training__max_steps=EPOCH)
    before = read(tmp_path / "run")["seconds"]
    resumed = train_here(data, tmp_path / "run")
    for results in (read(one), resumed):
        seconds = results["seconds"]
        assert list(seconds) == ["train", "data_wait", "validation", "checkpoint", "test"]
        assert all(value > 0 for value in seconds.values())
        assert seconds["data_wait"] < seconds["train"]
        assert seconds["train"] + seconds["validation"] == pytest.approx(results["train_val_seconds"])
    assert all(resumed["seconds"][part] > before[part] for part in ("train", "data_wait", "validation"))


def test_a_run_leaves_the_contracts_files(one):
    left = {path.name for path in one.iterdir()} - {"stdout", "stderr"}
    assert left == {
        *(
            ".lock",
            "checkpoints",
            "config.toml",
            "dataset.json",
            "metrics.jsonl",
            "plan.json",
            "results.json",
            "tensorboard",
        )
    }
    assert steps(one) == [20, 40, 47, 60, 80, 94]


def test_metrics_lines_and_tensorboard_agree(one):
    train = [line for line in lines(one) if "loss" in line]
    tasks = {f"{kind}/{task}" for kind in ("loss", "weight") for task in ("click", "like")}
    rates = {"lr/dense": 1e-3, "lr/embedding": 0.05}
    assert all(set(line) == {"step", "epoch", "loss", "examples_per_second", *tasks, *rates} for line in train)
    assert [line["epoch"] for line in train] == [1] * EPOCH + [2] * EPOCH
    for line in train:
        assert line["loss"] == pytest.approx(line["loss/click"] + line["loss/like"])
        for name, rate in rates.items():  # they rise over 30 steps
            assert line[name] == pytest.approx(rate * min(1.0, line["step"] / 30))
    val = [line for line in lines(one) if "val/loss" in line]
    assert [(line["step"], line["epoch"]) for line in val] == [(EPOCH, 1), (2 * EPOCH, 2)]
    best = val[read(one)["best_epoch"] - 1]
    for task, metrics in read(one)["val"].items():
        logged = {key: value for key, value in best.items() if key.startswith(f"val/{task}/")}
        assert logged == {f"val/{task}/{name}": metrics[name] for name in NUMBERS}

    events = EventAccumulator(str(one / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(one))
    assert [event.step for event in events.Scalars("val/loss")] == [EPOCH, 2 * EPOCH]
    for name in rates:
        assert [event.value for event in events.Scalars(name)] == pytest.approx([line[name] for line in train])

    [test] = [line for line in lines(one) if any(key.startswith("test/") for key in line)]
    assert (test["step"], test["epoch"]) == (2 * EPOCH, read(one)["best_epoch"])
    for task, metrics in read(one)["test"].items():
        for name in NUMBERS:
            assert test[f"test/{task}/{name}"] == metrics[name]
            [event] = events.Scalars(f"test/{task}/{name}")
            assert (event.step, event.value) == (2 * EPOCH, pytest.approx(metrics[name]))
    [text] = events.Tensors("config.toml")
    assert text.tensor_proto.string_val[0].decode() == f"```toml\n{(one / 'config.toml').read_text()}```\n"


def test_a_line_holds_the_mean_loss_since_the_line_before(data, one, tmp_path):
    train_here(data, tmp_path / "run", metrics__every_steps=10, training__max_steps=40)
    logged = [(line["step"], line["loss"]) for line in lines(tmp_path / "run") if "loss" in line]
    assert [step for step, _ in logged] == [10, 20, 30, 40]
    means = [sum(losses(one)[step - 10 : step]) / 10 for step, _ in logged]
    assert [loss for _, loss in logged] == pytest.approx(means, rel=1e-5)


def test_losses_are_logged_before_a_checkpoint_and_at_the_end(data, one, tmp_path):
    train_here(data, tmp_path / "run", metrics__every_steps=1000, training__max_steps=25)
    logged = [(line["step"], line["loss"]) for line in lines(tmp_path / "run") if "loss" in line]
    assert [step for step, _ in logged] == [20, 25]
    means = [sum(losses(one)[:20]) / 20, sum(losses(one)[20:25]) / 5]
    assert [loss for _, loss in logged] == pytest.approx(means, rel=1e-5)


def test_evaluate_gives_the_numbers_of_the_run(data, two, run_recmtl):
    """On one rank for a run of two, in a real process."""
    ended = run_recmtl("evaluate", two, "--data", data)
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    measured = read(two, evaluation(data, "test"))
    assert measured["split"] == "test"
    for task, metrics in read(two)["test"].items():
        assert flat(measured["test"][task]) == pytest.approx(flat(metrics), rel=1e-6)
        assert f"{metrics['auc']:8.4f} {metrics['auc_se']:8.4f}" in ended.stdout
    assert ended.stdout.split()[:3] == ["task", "AUC", "±"]
    bins = read(two)["calibration_bins"]["test"]["like"]
    assert measured["calibration_bins"]["test"]["like"]["rows"] == bins["rows"]
    assert measured["calibration_bins"]["test"]["like"]["prediction"] == pytest.approx(bins["prediction"], rel=1e-6)


def test_evaluate_measures_the_training_split_like_any_other(data, one, tmp_path):
    """With all metrics, and without a look at the other splits."""
    run = tmp_path / "run"
    shutil.copytree(one, run)
    shutil.copytree(data / "train", tmp_path / "data" / "train")
    shutil.copy(data / "dataset.json", tmp_path / "data")
    cli.evaluate([str(run), "--data", str(tmp_path / "data"), "--split", "train"])
    measured = read(run, evaluation(data, "train"))["train"]
    for task, metrics in measured.items():
        assert set(metrics) == {*NUMBERS, "auc_folds"}
        assert metrics["rows"] == TRAIN_ROWS
        assert metrics["oracle_auc"] > 0.7
        assert metrics["gauc"] > read(one)["test"][task]["gauc"]  # on rows that it has seen
        assert metrics["auc"] > read(one)["test"][task]["auc"]


def test_bf16_stays_near_float32(data, one, tmp_path):
    results = train_here(data, tmp_path / "run", training__amp="bf16")
    assert losses(tmp_path / "run") == pytest.approx(losses(one), rel=0.02)
    assert losses(tmp_path / "run") != losses(one)
    for task, metrics in results["test"].items():
        assert metrics["auc"] == pytest.approx(read(one)["test"][task]["auc"], abs=0.02)


def test_clipping_and_warm_up_change_the_run(data, one, tmp_path):
    for name, flags in {"clip": {"training__clip_norm": 0.01}, "cold": {"training__warmup_steps": 0}}.items():
        train_here(data, tmp_path / name, dense__optimizer="sgd", dense__lr=0.1, **flags)
    found = {name: losses(tmp_path / name) for name in ("clip", "cold")}
    assert all(math.isfinite(loss) for curve in found.values() for loss in curve)
    # The first loss comes before any step.
    assert found["clip"][0] == pytest.approx(losses(one)[0])
    assert found["cold"][0] == pytest.approx(losses(one)[0])
    assert found["clip"][-1] != pytest.approx(found["cold"][-1], rel=1e-3)


def test_another_seed_is_another_run(data, one, tmp_path):
    train_here(data, tmp_path / "run", training__seed=1, training__max_steps=3)
    assert losses(tmp_path / "run") != pytest.approx(losses(one)[:3], rel=1e-4)


@pytest.mark.parametrize("preset", MODELS)
def test_every_models_preset_trains_on_one_task(data, tmp_path, preset):
    results = train_here(data, tmp_path / "run", preset, tasks=("like",), training__max_epochs=1)
    assert results["model"] == preset
    assert set(results["test"]) == set(results["val"]) == {"like"}
    assert results["logloss_sum"] == results["test"]["like"]["logloss"]
    assert set(lines(tmp_path / "run")[0]) == {
        *("step", "epoch", "loss", "loss/like", "weight/like", "lr/dense", "lr/embedding", "examples_per_second")
    }


def test_a_task_with_one_class_has_no_auc(data, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    for path in (folder / "test").iterdir():
        table = pq.read_table(path)
        zeros = pa.array([0] * len(table), pa.int8())
        pq.write_table(table.set_column(table.schema.get_field_index("label_like"), "label_like", zeros), path)
    results = train_here(folder, tmp_path / "run", training__max_steps=10, metrics__include="auc")
    like, click = results["test"]["like"], results["test"]["click"]
    assert {key for key, value in like.items() if value is None} == {
        *("auc", "auc_se", "auc_folds", "oracle_auc", "gauc", "ne", "calibration")
    }
    assert like["base_rate"] == 0
    assert click["auc"] > 0.4
    assert (click["gauc"], click["oracle_auc"], click["calibration"]) == (None, None, None)  # not asked for
    assert capsys.readouterr().out.splitlines()[2].split()[:4] == ["like", "n/a", "n/a", "n/a"]
