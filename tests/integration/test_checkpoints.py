"""Checkpoints that are damaged, half written or not to be trusted, through the command line."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from jobs import weights, words
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata
from toy import write_toy

from recmtl import cli
from recmtl.errors import UserError
from recmtl.training.manifest import entry, find_damage
from recmtl.training.storage import IndexUnpickler, SafePlanner, SafeReader

FLAGS = {
    "training.batch_size": 64,
    "training.max_epochs": 2,
    "training.patience": 0,
    "training.device": "cpu",
    "metrics.tensorboard": False,
    "checkpoint.every_steps": 5,
    "checkpoint.keep": 100,
}
STEPS = 20  # two epochs of ten


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy(folder, {"train": 640, "val": 100, "test": 100})
    return folder


def train(data: Path, run: Path, **flags: Any) -> dict[str, Any]:
    flags = FLAGS | {key.replace("__", "."): value for key, value in flags.items()}
    cli.train(["mmoe", "--data", str(data), "--run", str(run), *words(flags)])
    return json.loads((run / "results.json").read_text())


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    train(data, run)
    return run


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A run that was killed before it was tested."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    return tmp_path / "run"


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09d}"


def assert_same_end(run: Path, whole: Path) -> None:
    assert weights(checkpoint(run, STEPS)) == weights(checkpoint(whole, STEPS))
    results, expected = (json.loads((path / "results.json").read_text()) for path in (run, whole))
    for key in ("epochs", "best_epoch", "steps", "test", "val", "logloss_sum"):
        assert results[key] == expected[key]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a missing file": ("__0_0.distcp", Path.unlink, "__0_0.distcp is missing"),
    "a file cut short": ("__0_0.distcp", cut, r"__0_0.distcp has [\d,]+ bytes, not [\d,]+"),
    "a flipped bit": ("__0_0.distcp", flip, "__0_0.distcp is not what was written"),
    "a flipped bit in the index": (".metadata", flip, ".metadata is not what was written"),
    "no state": ("train_state.json", Path.unlink, "train_state.json is missing"),
    "other state": ("train_state.json", flip, "train_state.json is not what was written"),
    "no manifest": ("manifest.json", Path.unlink, "manifest.json is missing"),
    "a manifest cut short": ("manifest.json", cut, "manifest.json is damaged"),
}


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_every_damage_is_found(whole, tmp_path, name, damage, words):
    folder = tmp_path / "step"
    shutil.copytree(checkpoint(whole, 15), folder)
    assert find_damage(folder) is None
    if name == "manifest.json" and damage is cut:
        os.truncate(folder / name, 30)
    else:
        damage(folder / name)
    found = [find_damage(folder, rank, 2) for rank in range(2)]
    with pytest.raises(AssertionError, match=f"^{words}$"):
        raise AssertionError(next(filter(None, found)))


@pytest.mark.parametrize("name", ["a missing file", "a flipped bit", "no manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(data, run, whole, capsys, name):
    """Also two of them; they are put aside."""
    file, damage, _ = DAMAGE[name]
    for step in (STEPS, 15):
        damage(checkpoint(run, step) / file)
    train(data, run)
    said = capsys.readouterr().err
    for step in (STEPS, 15):
        [line] = [line for line in said.splitlines() if line.startswith(f"{checkpoint(run, step)} is damaged ({file}")]
        assert line.endswith(f"it is now damaged-step-{step:09d}, and the one before it is taken")
        assert (run / "checkpoints" / f"damaged-step-{step:09d}").is_dir()
    assert_same_end(run, whole)


def test_no_checkpoint_that_is_whole_is_no_new_beginning(data, run):
    for path in run.glob("checkpoints/step-*/manifest.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"run/checkpoints: no checkpoint is whole .*; name another --run folder"):
        train(data, run)
    assert len(list((run / "checkpoints").iterdir())) == 4
    assert not (run / "results.json").exists()


def test_a_lost_best_checkpoint_is_told(data, tmp_path, capsys):
    """When the run goes on, another epoch becomes the best; to measure, there is none."""
    flags = {"embedding__lr": 0.5, "training__max_epochs": 6}  # gets worse after its best epoch
    results = train(data, tmp_path / "run", **flags)
    best = checkpoint(tmp_path / "run", 10 * results["best_epoch"])
    assert results["best_epoch"] < 6
    cut(best / "__0_0.distcp")
    with pytest.raises(UserError, match=rf"{best.name}: damaged \(__0_0.distcp has .*checkpoint of the best epoch"):
        cli.evaluate([str(tmp_path / "run"), "--data", str(data)])
    (tmp_path / "run" / "results.json").unlink()
    again = train(data, tmp_path / "run", **(flags | {"training__max_epochs": 7}))
    assert f"{best} is damaged" in capsys.readouterr().err
    assert again["best_epoch"] == 7
    for step in (65, 70):  # written after that
        shutil.rmtree(checkpoint(tmp_path / "run", step))
    shutil.rmtree(best)
    with pytest.raises(UserError, match=rf"{best.name}: missing; it is the checkpoint of the best epoch"):
        cli.evaluate([str(tmp_path / "run"), "--data", str(data)])


def test_what_a_kill_left_half_done_is_brought_back_or_removed(data, run, whole):
    """Killed between taking the old checkpoint of a step away and putting the new one in its place."""
    folder = run / "checkpoints"
    checkpoint(run, STEPS).rename(folder / f".step-{STEPS:09d}.old")
    shutil.copytree(checkpoint(run, 10), folder / f".step-{STEPS:09d}.tmp")
    checkpoint(run, 5).rename(folder / f".step-{5:09d}.gone")
    train(data, run)
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:09d}" for step in (10, 15, 20)]
    assert_same_end(run, whole)


def test_a_finished_run_is_left_as_it_is(data, whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    train(data, run, training__max_epochs=1)
    captured = capsys.readouterr()
    assert captured.err == f"{run}: finished already, after step {STEPS}\n"
    assert captured.out.splitlines()[1].startswith("click")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before


def test_results_that_are_missing_are_measured_again(data, run, whole):
    train(data, run)
    assert_same_end(run, whole)


def test_columns_cut_otherwise_are_refused_with_row_wise_state(data, run, whole):
    """A checkpoint of tables cut in two, which two ranks would write."""
    path = checkpoint(run, STEPS) / "train_state.json"
    state = json.loads(path.read_text())
    assert state["widths"] == {"user": 16, "item": 16, "tag": 16}
    path.write_text(json.dumps(state | {"widths": {"user": 16, "item": 8, "tag": 16}}))
    sign(path)
    with pytest.raises(UserError, match=r"'item' were cut into pieces of 8, now of 16, and rowwise_adagrad keeps"):
        train(data, run)
    cli.evaluate([str(run), "--data", str(data), "--split", "val"])  # needs no state


def sign(path: Path) -> None:
    """Make the manifest say that a file is what was written: as someone would who means harm."""
    manifest = path.parent / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {path.name: entry(path)}))


class Harm:
    """Pickled, a call of any function."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


class Attribute:
    """Pickled, an attribute of a class."""

    def __init__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.owner, self.name)


def test_an_index_runs_no_code(data, run, tmp_path):
    path = checkpoint(run, STEPS) / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.planner_data = Harm(tmp_path / "harmed")
    path.write_bytes(pickle.dumps(metadata))
    sign(path)
    with pytest.raises(UserError, match=r"step-000000020: cannot be loaded \(.*mkdir has no place in a checkpoint\)"):
        train(data, run)
    with pytest.raises(UserError, match=r"cannot be loaded"):
        cli.evaluate([str(run), "--data", str(data)])
    assert not (tmp_path / "harmed").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "harmed").exists()  # it would have


@pytest.mark.parametrize(
    ("owner", "name", "allowed"),
    [
        (_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT", True),
        (_MEM_FORMAT_ENCODING, "mro", False),
        (Metadata, "mro", False),
    ],
)
def test_getattr_in_an_index_gives_members_of_enumerations_alone(owner, name, allowed):
    """As Python 3.11.2 pickles them."""
    index = io.BytesIO(pickle.dumps(Attribute(owner, name)))
    if allowed:
        assert IndexUnpickler(index).load() is getattr(owner, name)
    else:
        with pytest.raises((pickle.UnpicklingError, KeyError)):
            IndexUnpickler(index).load()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_values_that_are_no_tensors_run_no_code(tmp_path):
    dcp.save({"plain": [1, "a"], "tensor": torch.ones(3)}, checkpoint_id=tmp_path / "good", no_dist=True)
    state = {"plain": None, "tensor": torch.zeros(3)}
    load = {"planner": SafePlanner(), "no_dist": True}
    dcp.load(state, storage_reader=SafeReader(tmp_path / "good"), **load)
    assert state["plain"] == [1, "a"]
    assert state["tensor"].tolist() == [1, 1, 1]
    dcp.save({"plain": Harm(tmp_path / "harmed")}, checkpoint_id=tmp_path / "bad", no_dist=True)
    with pytest.raises(dcp.CheckpointException, match="Weights only load failed"):
        dcp.load({"plain": None}, storage_reader=SafeReader(tmp_path / "bad"), **load)
    assert not (tmp_path / "harmed").exists()
    torch.load(io.BytesIO(_saved(Harm(tmp_path / "harmed"))), weights_only=False)
    assert (tmp_path / "harmed").exists()  # it would have


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
