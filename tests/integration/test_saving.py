"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from jobs import last_step, weights
from runs import EPOCH, read, steps, train_here, write_data

from recmtl.errors import Stopped, UserError
from recmtl.training.manifest import find_damage
from recmtl.training.session import TrainSession
from recmtl.training.storage import Writer

FLAGS = {"checkpoint__every_steps": 10, "training__max_epochs": 1}
LAST = f"checkpoints/step-{EPOCH:09d}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="module")
def waiting(data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stands still while its checkpoints are written."""
    run = tmp_path_factory.mktemp("runs") / "waiting"
    train_here(data, run, checkpoint__background=False, **FLAGS)
    return run


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def before_writing(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    """Have `call` run, with the folder that is written, in the thread that writes, before the tables are."""
    write_data = Writer.write_data

    def after_the_call(writer: Writer, *args: Any) -> Any:
        call(Path(writer.path))
        return write_data(writer, *args)

    monkeypatch.setattr(Writer, "write_data", after_the_call)


def test_steps_are_trained_while_a_checkpoint_is_written_and_no_bit_differs(data, waiting, tmp_path, monkeypatch):
    """Every write but the last one ends only after later steps; the state is that of its own step."""
    run, written = tmp_path / "run", []

    def later_step(folder: Path) -> None:
        step = int(folder.name.removeprefix(".step-").removesuffix(".tmp"))
        if step < EPOCH:
            wait_until(lambda: last_step(run) > step)
        written.append(step)

    before_writing(monkeypatch, later_step)
    train_here(data, run, **FLAGS)
    assert written == [10, 20, 30, 40, EPOCH]
    assert steps(run) == steps(waiting) == written
    for step in written:
        name = f"checkpoints/step-{step:09d}"
        assert find_damage(run / name) is None
        assert weights(run / name) == weights(waiting / name)
    assert read(run)["test"] == read(waiting)["test"]


def test_one_is_written_at_a_time(data, tmp_path, monkeypatch):
    """A save waits for the one before, and `results.json` for the last one."""
    run, now, most = tmp_path / "run", [], []

    def slowly(folder: Path) -> None:
        now.append(folder)
        most.append(len(now))
        assert not (run / "results.json").exists()
        time.sleep(0.1)
        now.remove(folder)

    before_writing(monkeypatch, slowly)
    train_here(data, run, **FLAGS | {"checkpoint__every_steps": 3})
    assert most == [1] * len(steps(run))
    assert steps(run) == [*range(3, EPOCH, 3), EPOCH]


def test_a_save_that_fails_ends_the_run_at_the_next_step(data, tmp_path, monkeypatch):
    """With the line that a save has always had; the checkpoint before it is whole, and nothing is left of it."""
    run, failed = tmp_path / "run", threading.Event()

    def fail(folder: Path) -> None:
        if folder.name == ".step-000000020.tmp":
            wait_until(lambda: last_step(run) >= 22)
            failed.set()
            raise OSError(errno.ENOSPC, "No space left on device")

    before_writing(monkeypatch, fail)
    run_batch = TrainSession.run_batch

    def batch_after_failure(session: TrainSession, batches: Any) -> Any:
        if failed.is_set():  # leave the thread its time to say so
            time.sleep(0.5)
        return run_batch(session, batches)

    monkeypatch.setattr(TrainSession, "run_batch", batch_after_failure)
    said = r"step-000000020: cannot be written \(No space left on device\); checkpoints before it are untouched$"
    with pytest.raises(UserError, match=said):
        train_here(data, run, **FLAGS)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000010"]
    assert 22 <= last_step(run) <= 24


def test_the_last_save_fails_while_the_test_rows_are_measured(data, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def fail(folder: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    before_writing(monkeypatch, fail)
    with pytest.raises(UserError, match=rf"step-{EPOCH:09d}: cannot be written \(Read-only file system\)"):
        train_here(data, run, training__max_epochs=1, checkpoint__every_steps=0)
    assert not run.exists()  # a run without a checkpoint leaves no trace


def test_sigterm_waits_for_what_is_being_written(data, waiting, tmp_path, monkeypatch):
    """It comes in the midst of a write; the state at the stop is saved after that, and the same command goes on."""
    run = tmp_path / "run"

    def signalled(folder: Path) -> None:
        if folder.name == ".step-000000020.tmp":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)

    before_writing(monkeypatch, signalled)
    with pytest.raises(Stopped, match=r"run: stopped and saved after step 2\d; the same command goes on$"):
        train_here(data, run, **FLAGS)
    saved = steps(run)
    assert saved[:2] == [10, 20]
    assert saved[-1] == last_step(run)
    assert all(find_damage(path) is None for path in (run / "checkpoints").iterdir())
    train_here(data, run, **FLAGS)
    assert weights(run / LAST) == weights(waiting / LAST)


def test_an_error_in_training_waits_for_what_is_being_written(data, tmp_path, monkeypatch):
    run, raised = tmp_path / "run", threading.Event()

    def until_the_error(folder: Path) -> None:
        assert raised.wait(60)
        time.sleep(0.2)

    before_writing(monkeypatch, until_the_error)
    run_batch = TrainSession.run_batch

    def broken(session: TrainSession, batches: Any) -> Any:
        if last_step(run) == 13:
            raised.set()
            raise UserError("train/part-00001.parquet: not readable")
        return run_batch(session, batches)

    monkeypatch.setattr(TrainSession, "run_batch", broken)
    with pytest.raises(UserError, match="not readable"):
        train_here(data, run, **FLAGS)
    assert steps(run) == [10]
    assert find_damage(run / "checkpoints" / "step-000000010") is None


def test_the_newest_checkpoint_and_the_best_one_stay(data, tmp_path):
    """Those that were the best before are gone."""
    flags = {"embedding__lr": 0.5, "training__max_epochs": 4, "checkpoint__keep": 1, "checkpoint__every_steps": 20}
    best = train_here(data, tmp_path / "run", **flags)["best_epoch"]
    assert 1 < best < 4
    assert steps(tmp_path / "run") == [best * EPOCH, 4 * EPOCH]
