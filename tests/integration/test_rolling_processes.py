"""`recmtl roll` in real processes: killed, stopped and failing in every step, under a launcher, and as a component."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import PATIENCE, Job
from launchers.torchx import torchx_run
from rolling_jobs import add_days, command, digests, records, served, write_days

from recmtl.rolling.record import load_records

pytestmark = pytest.mark.slow

STEPS = [
    ("2023-05-01", "prepare"),
    ("2023-05-01", "train"),
    ("2023-05-01", "export"),
    ("2023-05-02", "prepare"),
    ("2023-05-02", "evaluate"),
    ("2023-05-02", "train"),
    ("2023-05-02", "export"),
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three days, of which a job can do two."""
    folder = tmp_path_factory.mktemp("days")
    add_days(folder / "raw", write_days(folder / "days", 3), 1, 2, 3)
    return folder / "raw"


@pytest.fixture(scope="module")
def undisturbed(raw: Path) -> Path:
    """What a job made that nobody disturbed."""
    out = raw.parent / "undisturbed"
    finish(raw, out)
    return out


def start(raw: Path, out: Path, *options: object) -> Job:
    """A job in a process group of its own."""
    return Job("roll", *command(raw, out, *options))


def finish(raw: Path, out: Path, *options: object) -> Job:
    """Let a job come to its end."""
    job = start(raw, out, *options)
    try:
        assert job.end(PATIENCE * len(STEPS)) == 0, job.stderr
    finally:
        job.kill()
    return job


def in_step(out: Path, day: str, step: str) -> Callable[[], bool]:
    """Whether a job is in a step: of training, whether a checkpoint is there."""
    if step == "train":
        return lambda: any((out / "runs" / day / "checkpoints").glob("step-*"))
    return (out / "logs" / day / f"{step}.log").exists


def processes(out: Path) -> list[int]:
    """Processes that have something to do with a job."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(out) in path.read_text():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def gone(out: Path) -> None:
    """Wait until no process of a job is left: the system ends them one after the other."""
    deadline = time.monotonic() + PATIENCE
    while processes(out):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_in_every_step(raw: Path, out: Path, *options: object) -> None:
    for number, (day, step) in enumerate(STEPS):
        job = start(raw, out, *options)
        try:
            job.wait_for(in_step(out, day, step), pause=0.002)
            time.sleep(0.4 * (number % 3))  # at its beginning or later
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()
        finally:
            job.kill()
        gone(out)


def test_a_job_that_is_killed_in_every_step_ends_as_one_that_is_left_alone(raw, undisturbed, tmp_path):
    """SIGKILL to the whole process group, and the same command again."""
    kill_in_every_step(raw, tmp_path / "out")
    finish(raw, tmp_path / "out")
    assert records(tmp_path / "out") == records(undisturbed)
    assert served(tmp_path / "out") == served(undisturbed) == "exports/2023-05-02"
    for day in ("2023-05-01", "2023-05-02"):
        assert digests(tmp_path / "out", day) == digests(undisturbed, day) != {}
    # Nothing half-written is left.
    left = [path.name for path in (tmp_path / "out").rglob(".*") if path.name not in (".lock", ".metadata")]
    assert left == []


def test_ranks_of_a_launcher_are_gone_with_the_job(raw, tmp_path):
    """They are in process groups of their own, where no signal to the job's group reaches them."""
    out = tmp_path / "out"
    day, step = STEPS[1]
    job = start(raw, out, "--ranks", 2)
    try:
        job.wait_for(in_step(out, day, step), pause=0.002)
        assert len(processes(out)) >= 4  # job, launcher, two ranks
        os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()
        gone(out)
    finally:
        job.kill()
    finish(raw, out, "--ranks", 2)
    assert [record.gate.accepted for record in load_records(out)] == [True, True]


def test_sigterm_is_passed_on_and_what_was_trained_is_saved(raw, undisturbed, tmp_path):
    out = tmp_path / "out"
    job = start(raw, out, "--training.max_epochs", 1000)
    try:
        job.wait_for(in_step(out, *STEPS[1]))
        job.process.terminate()
        assert job.end() == 143
    finally:
        job.kill()
    assert job.stderr == "2023-05-01 train: stopped; the same command goes on\n"
    assert processes(out) == []
    assert "stopped and saved after step" in (out / "logs" / "2023-05-01" / "train.log").read_text()
    finish(raw, out)
    assert [record.day for record in records(out)] == [record.day for record in records(undisturbed)]


def test_a_step_that_fails_ends_the_job_with_its_line(raw, tmp_path, run_recmtl):
    out = tmp_path / "out"
    ended = run_recmtl("roll", *command(raw, out), "--metrics.monitor", "like.acu")
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: 2023-05-01 train: metrics.monitor: 'like.acu': 'acu' is no metric of a binary task")
    assert line.endswith(f" ({out}/logs/2023-05-01/train.log)")
    assert load_records(out) == []
    finish(raw, out)
    assert len(load_records(out)) == 2


def test_a_step_that_is_killed_is_told(raw, tmp_path):
    out = tmp_path / "out"
    job = start(raw, out)
    try:
        job.wait_for(in_step(out, *STEPS[1]))
        [child] = [number for number in processes(out) if number != job.process.pid]
        os.kill(child, signal.SIGKILL)
        assert job.end() == 137
    finally:
        job.kill()
    assert job.stderr == f"error: 2023-05-01 train: was ended by signal 9; see {out}/logs/2023-05-01/train.log\n"


def test_the_component_does_every_day(raw, undisturbed, tmp_path):
    places = ("--recipe", "merrec_time", "--raw", raw, "--out", tmp_path / "out", "--config", "mmoe")
    options = command(raw, tmp_path / "out", "--gate", "like.auc >= 0.3")[4:]
    ended = torchx_run("local_cwd", "rolling.py:rolling", *places, "--", *options, env={}, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert records(tmp_path / "out") == records(undisturbed)
    assert "2023-05-02 accepted" in ended.stdout + ended.stderr
