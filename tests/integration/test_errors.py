"""Mistakes through the command line: one line that names the place, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy import write_toy

from recmtl import cli
from recmtl.errors import UserError
from recmtl.schema import FORMAT

TRAIN_FILE = "train/part-00001.parquet"
FLAGS = ["--training.batch_size", "64", "--training.max_epochs", "1", "--training.device", "cpu"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy(folder, {"train": 300, "val": 50, "test": 50})
    return folder


@pytest.fixture
def data(good, tmp_path) -> Path:
    """A copy to damage."""
    shutil.copytree(good, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def trained(good, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    cli.train(["mmoe", "--data", str(good), "--run", str(run), *FLAGS])
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(column: str, kind: pa.DataType | None, value: object, file: str = TRAIN_FILE, statistics: bool = True):
    """Put a value into one row of a column, or drop the column (no type)."""

    def damage(data: Path) -> None:
        table = pq.read_table(data / file)
        place = table.schema.get_field_index(column)
        if kind is None:
            table = table.remove_column(place)
        else:
            values = table.column(column).to_pylist()
            values[7] = value
            table = table.set_column(place, column, pa.array(values, kind))
        pq.write_table(table, data / file, write_statistics=statistics)

    return damage


def truncate(data: Path) -> None:
    path = data / TRAIN_FILE
    path.write_bytes(path.read_bytes()[:-100])


def remove(name: str):
    def damage(data: Path) -> None:
        path = data / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def empty(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()


def describe_badly(data: Path) -> None:
    (data / "dataset.json").write_text(json.dumps({"format": FORMAT, "name": "x"}))


def describe_another_version(data: Path) -> None:
    path = data / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


INT, LIST = pa.int32(), pa.list_(pa.int32())
BAD_DATA = {  # name: damage, words of the message
    "missing column": (change("item", None, None), [TRAIN_FILE, "no column 'item'"]),
    "missing column in the test split": (
        change("item", None, None, "test/part-00000.parquet"),
        ["test/part-00000.parquet", "no column 'item'"],
    ),
    "missing label": (change("label_like", None, None), [TRAIN_FILE, "no column 'label_like'"]),
    "truncated file": (truncate, [TRAIN_FILE, "not readable as Parquet"]),
    "empty folder": (empty, ["data: no dataset.json in it", "recmtl prepare"]),
    "no folder": (shutil.rmtree, ["data: no dataset.json in it"]),
    "no files": (remove("val"), ["val: no part-*.parquet files"]),
    "a file too few": (remove(TRAIN_FILE), ["train: 150 rows, but dataset.json says 300"]),
    "null id": (change("item", INT, None), [TRAIN_FILE, "column 'item' holds nulls"]),
    "negative id": (change("item", INT, -1), [TRAIN_FILE, "column 'item' holds -1, outside 0 to 199"]),
    "id past the table": (change("user", INT, 50), [TRAIN_FILE, "column 'user' holds 50, outside 0 to 49"]),
    "id past the table in a list": (change("tags", LIST, [3, 20]), [TRAIN_FILE, "column 'tags' holds 20"]),
    "label 2": (change("label_like", pa.int8(), 2), [TRAIN_FILE, "column 'label_like' holds 2, outside 0 to 1"]),
    "NaN label": (change("label_click", pa.float32(), float("nan")), [TRAIN_FILE, "column 'label_click' is float"]),
    "infinite label": (change("label_click", pa.float64(), float("inf")), [TRAIN_FILE, "'label_click' is double"]),
    "number of another type": (change("price", pa.float64(), 1.0), [TRAIN_FILE, "column 'price' is double, not float"]),
    "damaged dataset.json": (describe_badly, ["dataset.json: damaged"]),
    "another version's dataset.json": (describe_another_version, ["dataset.json: written by another version"]),
}


def assert_one_line(message: str, words: list[str]) -> None:
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(("damage", "words"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_found_before_anything_is_written(data, tmp_path, damage, words):
    damage(data)
    with pytest.raises(UserError) as caught:
        cli.train(["mmoe", "--data", str(data), "--run", str(tmp_path / "run"), *FLAGS])
    assert_one_line(str(caught.value), words)
    assert not (tmp_path / "run").exists()


LATE = {
    "NaN number": (change("price", pa.float32(), float("nan")), [TRAIN_FILE, "column 'price', row 7: nan"]),
    "id past the table": (change("user", INT, 50, statistics=False), [TRAIN_FILE, "column 'user' holds id 50"]),
    "label 2": (change("label_like", pa.int8(), 2, statistics=False), [TRAIN_FILE, "'label_like', row 7: 2"]),
    "in validation": (
        change("price", pa.float32(), float("inf"), "val/part-00000.parquet"),
        ["val/part-00000.parquet"],
    ),
}


@pytest.mark.parametrize(("damage", "words"), LATE.values(), ids=LATE)
def test_what_only_decoding_tells_leaves_no_run(data, tmp_path, damage, words):
    damage(data)
    with pytest.raises(UserError) as caught:
        cli.train(["mmoe", "--data", str(data), "--run", str(tmp_path / "run"), *FLAGS])
    assert_one_line(str(caught.value), words)
    assert not (tmp_path / "run").exists()


def test_what_only_decoding_tells_leaves_what_was_there(data, tmp_path):
    """Parents that were made for the run go with it, a folder that was there stays, and so do checkpoints."""
    change("price", pa.float32(), float("inf"), "val/part-00000.parquet")(data)
    for run in ("new/run", "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="must be a finite number"):
            cli.train(["mmoe", "--data", str(data), "--run", str(tmp_path / run), *FLAGS])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "there"]
    assert list((tmp_path / "there").iterdir()) == []
    with pytest.raises(UserError, match="must be a finite number"):
        cli.train(
            ["mmoe", "--data", str(data), "--run", str(tmp_path / "run"), *FLAGS, "--checkpoint.every_steps", "2"]
        )
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000000002", "step-000000004"]


BAD_FLAGS = {
    "unknown option": (
        ["--trainin.batch_size", "3"],
        ["unknown option '--trainin.batch_size'; did you mean --training.batch_size?"],
    ),
    "widths for a number": (
        ["--model.expert", "4"],
        ["unknown option '--model.expert'; did you mean --model.experts?"],
    ),
    "ill-typed": (
        ["--training.batch_size", "many"],
        ["--training.batch_size: write one whole number from 1 to 2147483647, not 'many'"],
    ),
    "no such choice": (["--training.device", "tpu"], ["--training.device: no 'tpu'; choose one of auto, cpu, cuda"]),
    "out of range": (
        ["--training.batch_size", "0"],
        ["--training.batch_size: write one whole number from 1 to 2147483647, not '0'"],
    ),
    "unknown task": (["--training.tasks", "clik"], ["training.tasks", "no task 'clik'; did you mean 'click'?"]),
    "unknown table": (
        ["--sharding.tables", "itm", "table_wise"],
        ["sharding.tables: no table 'itm'; did you mean 'item'?"],
    ),
    "not on this device": (["--sharding.type", "row_wise"], ["no row_wise on cpu"]),
    "no such optimiser here": (["--embedding.optimizer", "adam"], ["embedding.optimizer: no adam on the CPU"]),
    "does not fit": (["--sharding.device_memory_gib", "1e-6"], ["do not fit 1 x 0.0 GiB"]),
    "model of another preset": (["--model.name", "shared_bottom"], ["--model.name", "shared_bottom"]),
}


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_options(good, tmp_path, flags, words):
    with pytest.raises(UserError) as caught:
        cli.train(["mmoe", "--data", str(good), "--run", str(tmp_path / "run"), *FLAGS, *flags])
    assert_one_line(str(caught.value), words)
    assert not (tmp_path / "run").exists()


BAD_STARTS = {
    "no preset named": ([], ["name a preset or a TOML file first"]),
    "unknown preset": (["mmo"], ["'mmo' is neither a preset nor a .toml file; did you mean 'mmoe'?"]),
    "no such file": (["absent.toml"], ["absent.toml: no such file"]),
    "no data": (["mmoe", "--run", "run"], ["--data missing; the command is recmtl train CONFIG --data DATA --run RUN"]),
    "no run": (["mmoe", "--data", "data"], ["--run missing; the command is recmtl train CONFIG --data DATA"]),
    "two tasks for one": (["single_task", "--data", "DATA", "--run", "run"], ["single_task trains one task"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_STARTS.values(), ids=BAD_STARTS)
def test_bad_beginnings(good, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        cli.train([argument.replace("DATA", str(good)) for argument in arguments])
    assert_one_line(str(caught.value), words)
    assert list(tmp_path.iterdir()) == []


def test_data_of_another_recipe_is_refused(good, trained, tmp_path):
    """To evaluate on, and to go on training with."""
    other = tmp_path / "other"
    write_toy(other, {"train": 300, "val": 50, "test": 50}, table_rows=(60, 200))
    before = contents(trained)
    for command in (
        lambda: cli.evaluate([str(trained), "--data", str(other)]),
        lambda: cli.train(["mmoe", "--data", str(other), "--run", str(trained), *FLAGS]),
    ):
        with pytest.raises(UserError) as caught:
            command()
        assert_one_line(str(caught.value), [f"{trained} was trained on: the encoding of table 'user': rows 50, now 60"])
        assert contents(trained) == before


def test_a_run_is_not_overwritten_unasked(good, trained):
    before = contents(trained)
    with pytest.raises(UserError, match="holds a run already; choose another --run folder"):
        cli.train(["mmoe", "--data", str(good), "--run", str(trained), *FLAGS, "--checkpoint.resume", "False"])
    assert contents(trained) == before


BAD_CONTINUATIONS = {
    "sizes of the model": (["--model.experts", "3"], ["the run has model.experts 4, not 3"]),
    "sizes of the tables": (["--embedding.dim", "8"], ["the run has embedding.dim 16, not 8"]),
    "order of rows": (["--training.batch_size", "32"], ["the run has training.batch_size 64, not 32"]),
    "tasks": (["--training.tasks", "like"], ["the run has training.tasks [], not ['like']"]),
    "state of the optimiser": (["--dense.optimizer", "sgd"], ["the run has dense.optimizer adam, not sgd"]),
}


@pytest.mark.parametrize(("flags", "words"), BAD_CONTINUATIONS.values(), ids=BAD_CONTINUATIONS)
def test_a_run_goes_on_as_what_it_is(good, trained, flags, words):
    before = contents(trained)
    with pytest.raises(UserError) as caught:
        cli.train(["mmoe", "--data", str(good), "--run", str(trained), *FLAGS, *flags])
    assert_one_line(str(caught.value), [str(trained), *words, "name another --run folder"])
    assert contents(trained) == before


def test_another_model_does_not_go_on_with_a_run(good, trained):
    with pytest.raises(UserError, match=r"the run has model.name mmoe, not shared_bottom"):
        cli.train(["shared_bottom", "--data", str(good), "--run", str(trained), *FLAGS])


def test_training_wants_rows_and_a_folder_to_write(good, tmp_path):
    write_toy(tmp_path / "data", {"train": 0, "val": 50, "test": 50})
    with pytest.raises(UserError, match=r"data: split 'train' has no rows"):
        cli.train(["mmoe", "--data", str(tmp_path / "data"), "--run", str(tmp_path / "run"), *FLAGS])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--run: .*file cannot be written \(File exists\)"):
        cli.train(["mmoe", "--data", str(good), "--run", str(tmp_path / "file"), *FLAGS])


def test_evaluate_wants_a_trained_run_and_a_split_with_rows(good, trained, tmp_path):
    with pytest.raises(UserError, match=r"no config.toml in it; name a run folder"):
        cli.evaluate([str(tmp_path), "--data", str(good)])
    with pytest.raises(UserError, match="--split: no 'tset'; did you mean 'test'"):
        cli.evaluate([str(trained), "--data", str(good), "--split", "tset"])
    shutil.copy(trained / "config.toml", tmp_path)
    with pytest.raises(UserError, match="no checkpoint in it; train the run first"):
        cli.evaluate([str(tmp_path), "--data", str(good)])


def bad_config(tmp_path: Path) -> list[object]:
    (tmp_path / "my.toml").write_text('[model]\nname = "mmoe"\n[training]\nbatchsize = 3\n')
    return ["train", tmp_path / "my.toml", "--data", tmp_path / "data", "--run", tmp_path / "run"]


def bad_id(tmp_path: Path) -> list[object]:
    write_toy(tmp_path / "data", {"train": 300, "val": 50, "test": 50})
    change("item", INT, 200)(tmp_path / "data")
    return ["train", "mmoe", "--data", tmp_path / "data", "--run", tmp_path / "run"]


def no_gpu(tmp_path: Path) -> list[object]:
    write_toy(tmp_path / "data", {"train": 300, "val": 50, "test": 50})
    return ["train", "mmoe", "--data", tmp_path / "data", "--run", tmp_path / "run", "--training.device", "cuda"]


def raw_files_missing(tmp_path: Path) -> list[object]:
    (tmp_path / "raw").mkdir()
    return ["prepare", "merrec", tmp_path / "raw", tmp_path / "run"]


PROCESSES = {
    "unknown command": (lambda tmp_path: ["trian", "mmoe"], ["no command 'trian'; did you mean 'train'?"]),
    "unknown key in a TOML file": (
        bad_config,
        ["my.toml: unknown key 'training.batchsize'; did you mean 'batch_size'?"],
    ),
    "id past the table": (bad_id, [TRAIN_FILE, "column 'item' holds 200, outside 0 to 199"]),
    "cuda without a GPU": (no_gpu, ["training.device is cuda, but PyTorch sees no GPU here"]),
    "nothing to prepare": (raw_files_missing, ["raw"]),
}


@pytest.mark.parametrize(("command", "words"), PROCESSES.values(), ids=PROCESSES)
def test_a_mistake_is_one_line_and_exit_code_2(run_recmtl, tmp_path, request, command, words):
    if "cuda" in request.node.name and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    ended = run_recmtl(*command(tmp_path))
    assert ended.returncode == 2
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert_one_line(line, words)
    assert not (tmp_path / "run").exists()


def test_a_list_that_nobody_reads_to_its_end_is_no_failure():
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-m", "recmtl", "presets"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")
