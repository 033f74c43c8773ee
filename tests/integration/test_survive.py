"""What befalls a job from outside: signals, a full or read-only disk, data that changes under it, a second job.

Real processes through the real command line. What takes longer is in test_survive_kills.py.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
from disks import disk
from jobs import Job, last_step, running, standalone, training, weights
from toy import write_toy

from recmtl import cli
from recmtl.errors import UserError
from recmtl.runtime.locks import locked

STEPS = 120  # more than two epochs of 47
command = partial(training, training__max_steps=STEPS)
ENDLESS = {"training__max_epochs": 1_000_000, "training__max_steps": 0, "checkpoint__every_steps": 10}
READ_ONLY = ["mount", "-o", "remount,ro"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy(folder, {"train": 3000, "val": 400, "test": 501})
    return folder


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with running(*command(data, run), launcher=standalone(2)) as job:
        assert job.end() == 0, job.stderr
    return run


def checkpoint(run: Path, step: int = STEPS) -> Path:
    return run / "checkpoints" / f"step-{step:09d}"


def errors(job: Job) -> list[str]:
    """What a job said beside its progress."""
    return [line for line in job.stderr.splitlines() if not line.startswith(("epoch ", "test "))]


def assert_same_end(run: Path, other: Path) -> None:
    """No bit of the model differs, nor of what was measured."""
    assert weights(checkpoint(run)) == weights(checkpoint(other))
    results, expected = (json.loads((path / "results.json").read_text()) for path in (run, other))
    for key in ("epochs", "best_epoch", "steps", "test", "val", "logloss_sum"):
        assert results[key] == expected[key]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["launcher", "one rank"])
def test_sigterm_saves_and_ends_and_the_same_command_goes_on(data, undisturbed, tmp_path, who):
    """Of a scheduler to the launcher, or to one rank alone: all agree on the step, and no bit is lost."""
    run = tmp_path / "run"
    with running(*command(data, run), launcher=standalone(2)) as job:
        ranks = job.wait_for(lambda: last_step(run) >= 5 and job.ranks())
        (job.process if who == "launcher" else ranks[1]).send_signal(signal.SIGTERM)
        assert job.end() == 128 + signal.SIGTERM
    stopped = last_step(run)
    assert 5 <= stopped < STEPS
    assert errors(job) == [f"{run}: stopped and saved after step {stopped}; the same command goes on"]
    assert checkpoint(run, stopped).is_dir()
    with running(*command(data, run), launcher=standalone(2)) as job:
        assert job.end() == 0
    assert errors(job) == []
    assert_same_end(run, undisturbed)


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again(data, undisturbed, tmp_path):
    run = tmp_path / "run"
    with running(*command(data, run, checkpoint__every_steps=5), launcher=standalone(2, restarts=1)) as job:
        job.wait_for(lambda: last_step(run) >= 53)  # in the second epoch
        job.ranks()[1].kill()
        assert job.end() == 0
    assert errors(job) == []
    assert_same_end(run, undisturbed)


def test_without_a_restart_the_launcher_says_who_was_killed(data, tmp_path):
    run = tmp_path / "run"
    with running(*command(data, run, **ENDLESS), launcher=standalone(2)) as job:
        job.wait_for(lambda: last_step(run) >= 5)
        job.ranks()[0].kill()
        assert job.end() == 128 + signal.SIGKILL
    assert errors(job) == ["error: local rank 0 was ended by signal 9"]


def test_a_file_cut_short_ends_all_ranks_with_one_line(tmp_path):
    """On the rank that reads it, in mid epoch."""
    data, run = tmp_path / "data", tmp_path / "run"
    write_toy(data, {"train": 100_000, "val": 400, "test": 501})
    part = data / "train" / "part-00001.parquet"
    flags = {"reader__streams": 2, "checkpoint__every_steps": 10, "training__max_steps": 0}
    with running(*command(data, run, **flags), launcher=standalone(2)) as job:
        job.wait_for(lambda: list(run.glob("checkpoints/step-*")))
        os.truncate(part, part.stat().st_size // 2)
        assert job.end() == 2
    [line] = errors(job)
    assert line.startswith(f"error: {part}: not readable as Parquet (")
    assert list(run.glob("checkpoints/step-*"))


@pytest.mark.parametrize("when", ["in training", pytest.param("in validation", marks=pytest.mark.slow), "at the start"])
def test_sigterm_to_a_single_process(data, tmp_path, when):
    run = tmp_path / "run"
    if when == "in validation":
        data = tmp_path / "data"
        write_toy(data, {"train": 64, "val": 60_000, "test": 64})
    with running(*command(data, run, **ENDLESS)) as job:
        if when == "in training":
            job.wait_for(lambda: last_step(run) >= 5)
        elif when == "in validation":
            job.wait_for(lambda: last_step(run) == 1)
        else:
            job.wait_for(lambda: (run / ".lock").exists())
        job.process.send_signal(signal.SIGTERM)
        assert job.end() == 128 + signal.SIGTERM
    saved = [path.name for path in run.glob("checkpoints/*")]
    if when == "at the start" and not saved:  # nothing to save yet
        assert errors(job) == []
    else:
        [line] = errors(job)
        assert "stopped and saved after step" in line
        assert saved
    if when == "in validation":  # goes on with the validation of the epoch that is trained
        assert saved == ["step-000000001"]
        cli.train(list(map(str, command(data, run, training__max_epochs=1)))[1:])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 1, 1]
        for line, name in zip(lines, ("loss", "val/loss", "test/click/auc"), strict=True):
            assert name in line
        assert json.loads((run / "results.json").read_text())["epochs"] == 1


def test_sigterm_to_a_rank_that_waits_for_the_first(tmp_path):
    """It ends at once: the first one may be gone, and the launcher waits long for ranks that save."""
    with socket.create_server(("127.0.0.1", 0)) as first:
        first.settimeout(120)
        ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(first.getsockname()[1])}
        command = [sys.executable, "-m", "recmtl", "train", "mmoe", "--data", "none", "--run", "none"]
        rank = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **ranks, **place})
        try:
            with first.accept()[0]:
                rank.terminate()
                assert rank.wait(60) == -signal.SIGTERM
        finally:
            rank.kill()
            rank.wait()


def test_sigterm_to_synth_leaves_nothing(tmp_path):
    with running("synth", "merrec", tmp_path / "raw", "--events", 100_000_000) as job:
        job.wait_for(lambda: (tmp_path / ".raw.tmp" / "data").exists())
        job.process.send_signal(signal.SIGTERM)
        assert job.end() == 128 + signal.SIGTERM
    assert errors(job) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, ""), (signal.SIGINT, "interrupted\n")])
def test_a_signal_that_a_library_swallows_ends_synth_all_the_same(tmp_path, number, said):
    """PyArrow imports what need not be installed, and drops whatever is raised meanwhile."""
    program = f"""
import os, sys
from recmtl.cli import main

class SignalledImport:
    def find_spec(name, *_):
        if name == "dateutil":
            os.kill(os.getpid(), {int(number)})

sys.meta_path.insert(0, SignalledImport)
sys.argv = ["recmtl", "synth", "merrec", {str(tmp_path / "raw")!r}, "--events", "2000000"]
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "", said)
    assert list(tmp_path.iterdir()) == []


def limit_files() -> None:
    """In the process to start: no file may be larger than 100 kB, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_checkpoint_that_cannot_be_written_is_no_checkpoint(data, tmp_path):
    run = tmp_path / "run"
    with running(*command(data, run, **ENDLESS), before=limit_files) as job:
        assert job.end() == 2
    [line] = errors(job)
    assert line.startswith(f"error: {checkpoint(run, 10)}: cannot be written (File too large)")
    assert not list(run.glob("checkpoints/*"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_save_that_fails_on_one_rank_ends_both_with_one_line(data, tmp_path, rank):
    run = tmp_path / "run"
    with running(*command(data, run, **ENDLESS), launcher=standalone(2)) as job:
        job.wait_for(lambda: list(run.glob("checkpoints/step-*")))
        job.ranks()[rank].rlimit(psutil.RLIMIT_FSIZE, (100_000, 100_000))
        assert job.end() == 2
    [line] = errors(job)
    assert line.startswith(f"error: {run}/checkpoints/step-")
    assert line.endswith(": cannot be written (File too large); checkpoints before it are untouched")
    assert all(path.name.startswith("step-") for path in run.glob("checkpoints/*"))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_folder_that_becomes_read_only(data, tmp_path, ranks):
    """Where nothing can be removed either, the next start does; the run goes on from what was saved."""
    run, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with disk(checkpoints, "64m"):
        with running(*command(data, run, **ENDLESS), launcher=standalone(ranks)) as job:
            job.wait_for(lambda: list(checkpoints.glob("step-*")))
            job.wait_for(lambda: subprocess.run([*READ_ONLY, checkpoints], capture_output=True).returncode == 0)
            assert job.end() == 2
        [line] = errors(job)
        assert line.startswith(f"error: {checkpoints}/step-")
        assert "Read-only file system" in line
        subprocess.run(["mount", "-o", "remount,rw", checkpoints], check=True)
        saved = max(path.name for path in checkpoints.glob("step-*"))
        with running(*command(data, run, training__max_steps=int(saved[5:]) + 10), launcher=standalone(ranks)) as job:
            assert job.end() == 0, job.stderr
        assert all(path.name.startswith("step-") for path in checkpoints.iterdir())


@pytest.mark.slow
def test_a_full_disk_loses_nothing(data, tmp_path, small_disk):
    """On two ranks; the checkpoints that fit are there, and the run goes on when there is room again."""
    run = small_disk / "run"
    flags = {"checkpoint__every_steps": 5, "checkpoint__keep": 100}
    with running(*command(data, run, **flags), launcher=standalone(2)) as job:
        assert job.end() == 2
    [line] = errors(job)
    assert "No space left on device" in line
    left = sorted(path.name for path in run.glob("checkpoints/*"))
    assert left
    assert all(name.startswith("step-") for name in left)
    for name in left[:-1]:
        shutil.rmtree(run / "checkpoints" / name)
    with running(*command(data, run, checkpoint__keep=1), launcher=standalone(2)) as job:
        assert job.end() == 0, job.stderr


def test_a_folder_that_cannot_be_written(data, tmp_path):
    """Sysfs takes no files, from nobody."""
    with pytest.raises(UserError, match=r"^--run: /sys/kernel cannot be written \("):
        cli.train([str(word) for word in command(data, Path("/sys/kernel"))[1:]])


def test_a_run_in_use_is_left_alone(data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with (
        locked(run / ".lock", run),
        pytest.raises(UserError, match=rf"run: in use by process {os.getpid()} on \S+; wait for it to end"),
    ):
        cli.train([str(word) for word in command(data, run)[1:]])
    assert [path.name for path in run.iterdir()] == [".lock"]
