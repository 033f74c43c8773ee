"""Runs in an object store: their checkpoints are complete or absent, and they are the runs that a disk holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import empty_store, failing, names
from trained import train

from recmtl.errors import UserError
from recmtl.runtime import remote
from recmtl.runtime.storage import list_folder, read_json, read_text, remove, write_whole
from recmtl.training.checkpoint_folder import (
    best_checkpoint,
    checkpoint_path,
    checkpoint_paths,
    give_name,
    make_unfinished,
    prune,
    put_aside,
    tidy,
    unfinished_path,
)
from recmtl.training.tracking import Tracker

RESULTS = ("steps", "epochs", "best_epoch", "test", "val", "logloss_sum")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECMTL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" if request.param == "disk" else empty_store()


def write(folder: Path, step: int, text: str = "", *, whole: bool = True) -> Path:
    """Write a checkpoint as a run does, or what is there of it before it is whole."""
    final = checkpoint_path(folder, step)
    make_unfinished(final)
    unfinished = unfinished_path(final)
    write_whole(unfinished / "__0_0.distcp", text)
    if whole:
        write_whole(unfinished / "manifest.json", text)
        give_name(unfinished, final)
    return final


def whole(folder: Path) -> list[str]:
    return [path.name for path in checkpoint_paths(folder)]


def test_a_checkpoint_is_there_when_it_is_whole(folder: Path):
    write(folder, 1)
    write(folder, 2, whole=False)
    assert whole(folder) == ["step-000000001"]
    tidy(folder)
    assert [path.name for path in list_folder(folder)] == ["step-000000001"]


def test_a_checkpoint_of_the_same_step_replaces_the_old_one_when_it_is_whole(folder: Path):
    write(folder, 1, "old")
    write(folder, 1, "unfinished", whole=False)
    tidy(folder)
    assert read_text(checkpoint_path(folder, 1) / "__0_0.distcp") == "old"
    write(folder, 1, "new")
    assert read_text(checkpoint_path(folder, 1) / "__0_0.distcp") == "new"
    assert [path.name for path in list_folder(folder)] == ["step-000000001"]
    tidy(folder)
    assert whole(folder) == ["step-000000001"]


def test_old_checkpoints_go_and_damaged_ones_get_another_name(folder: Path):
    for step in range(1, 6):
        write(folder, step)
    prune(folder, 2, {2})
    assert whole(folder) == [f"step-{step:09d}" for step in (2, 4, 5)]
    put_aside(checkpoint_path(folder, 5), folder / "damaged-step-000000005")
    assert list_folder(folder)[0].name == "damaged-step-000000005"
    assert whole(folder) == [f"step-{step:09d}" for step in (2, 4)]


def test_of_a_checkpoint_that_is_removed_the_manifest_goes_first():
    folder = empty_store()
    for step in range(3):
        write(folder, step)
    with failing(lambda *_: None) as store:
        prune(folder, 1, set())
    removed = [where for name, where in store.requests if name == "rm_file"]
    assert removed[0].endswith("step-000000000/manifest.json")


@pytest.fixture(scope="module")
def runs(esmm: Path) -> tuple[Path, Path]:
    """The run of a disk, and one in a store with its data beside it."""
    run = empty_store()
    train(esmm / "data", run, "esmm")
    return esmm / "run", run


def test_a_run_is_that_of_a_disk(runs: tuple[Path, Path]):
    disk, store = runs
    results, expected = (read_json(run / "results.json") for run in runs)
    assert {key: results[key] for key in RESULTS} == {key: expected[key] for key in RESULTS}
    assert best_checkpoint(store).name == best_checkpoint(disk).name
    manifests = [read_json(best_checkpoint(run) / "manifest.json") for run in runs]
    assert manifests[0]["__0_0.distcp"] == manifests[1]["__0_0.distcp"]
    assert set(names(store)) == {str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file()} - {".lock"}


def test_it_goes_on_from_the_newest_checkpoint_that_is_whole(esmm: Path):
    run = empty_store()
    train(esmm / "data", run, "esmm", training__max_steps=4, checkpoint__every_steps=2)
    remove(checkpoint_path(run / "checkpoints", 4) / "manifest.json")
    train(esmm / "data", run, "esmm", training__max_steps=6, checkpoint__every_steps=2)
    disk = read_json(best_checkpoint(esmm / "run") / "manifest.json")
    assert read_json(best_checkpoint(run) / "manifest.json")["__0_0.distcp"] == disk["__0_0.distcp"]


def test_a_file_that_is_not_what_was_written_is_damage(esmm: Path, capfd: pytest.CaptureFixture[str]):
    run = empty_store()
    train(esmm / "data", run, "esmm", training__max_steps=4, checkpoint__every_steps=2)
    path = checkpoint_path(run / "checkpoints", 4) / "__0_0.distcp"
    remote.write_bytes(path, remote.read_bytes(path)[:-1] + b"?")
    train(esmm / "data", run, "esmm", training__max_steps=6, checkpoint__every_steps=2)
    assert "step-000000004 is damaged (__0_0.distcp is not what was written)" in capfd.readouterr().err


def test_a_store_that_cannot_be_reached_is_no_damage(esmm: Path):
    run = empty_store()
    train(esmm / "data", run, "esmm", training__max_steps=4, checkpoint__every_steps=2)
    before = names(run / "checkpoints")

    def fails(name: str, where: str) -> Exception | None:
        return ConnectionError("cut") if name == "cat_file" and where.endswith(".distcp") else None

    with failing(fails), pytest.raises(UserError, match="distcp: cut"):
        train(esmm / "data", run, "esmm", training__max_steps=6, checkpoint__every_steps=2)
    assert names(run / "checkpoints") == before


def test_a_mistake_before_the_first_checkpoint_leaves_no_trace(esmm: Path):
    run = empty_store()
    with pytest.raises(UserError):
        train(esmm / "data", run, "esmm", training__tasks="nothing")
    with pytest.raises(UserError):
        train(esmm / "data", run, "esmm", reader__streams=0)
    assert names(run) == []


@pytest.mark.parametrize("tensorboard", [False, True])
def test_metrics_are_there_when_they_are_published_and_at_the_end(tensorboard: bool):
    run, lost = empty_store(), []

    def check() -> None:
        if lost:
            raise UserError("lost")

    def steps() -> int:
        return len(read_text(run / "metrics.jsonl").splitlines())

    with Tracker(run, enabled=True, tensorboard=tensorboard, step=0, check_held=check) as tracker:
        tracker.log(1, {"loss": 1.0})
        assert steps() == 0
        tracker.publish()
        assert steps() == 1
        tracker.log(2, {"loss": 1.0})
    assert steps() == 2
    assert any("tensorboard" in name for name in names(run)) == tensorboard
    tracker = Tracker(run, enabled=True, tensorboard=tensorboard, step=1, check_held=check)
    tracker.log(3, {"loss": 1.0})
    lost.append(True)
    with pytest.raises(UserError, match="lost"):
        tracker.__exit__(None, None, None)
    assert steps() == 1
