"""Several ranks through `recmtl.launch`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from jobs import last_step, training
from launchers.torchx import ranks_of, results_of, torchx_start, wait_for
from toy import write_toy


def test_a_mistake_on_several_ranks_is_told_once(run_recmtl, tmp_path):
    ended = run_recmtl("train", "mmoe", "--data", tmp_path / "nowhere", "--run", tmp_path / "run", ranks=2)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'nowhere'}: no dataset.json in it")
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_one_rank_finds_is_told_once(run_recmtl, tmp_path):
    """The second rank looks at the second file."""
    write_toy(tmp_path / "data", {"train": 300, "val": 50, "test": 50})
    bad = tmp_path / "data" / "val" / "part-00001.parquet"
    bad.write_bytes(bad.read_bytes()[:-100])
    ended = run_recmtl("train", "mmoe", "--data", tmp_path / "data", "--run", tmp_path / "run", ranks=2)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"error: {bad}: not readable as Parquet")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "the '--' is missing in python -m recmtl.launch TORCHRUN-OPTIONS -- COMMAND ..."),
        (["--nproc-per-node=x", "--", "train"], "recmtl.launch: Unsupported nproc_per_node value: x"),
    ],
)
def test_a_mistake_in_the_launchers_options_is_one_line(arguments, said):
    ended = subprocess.run([sys.executable, "-m", "recmtl.launch", *arguments], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, f"error: {said}\n")


def test_an_interrupt_is_no_error_of_torchruns(tmp_path):
    write_toy(tmp_path / "data", {"train": 300, "val": 50, "test": 50})
    launch = [sys.executable, "-m", "recmtl.launch", "--standalone", "--nproc-per-node=2", "--", "train", "mmoe"]
    places = ["--data", str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--metrics.tensorboard", "False"]
    endless = ["--training.max_epochs", "1000000", "--training.patience", "0", "--training.device", "cpu"]
    process = subprocess.Popen([*launch, *places, *endless], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "SignalException" not in said


@pytest.mark.slow
def test_a_torchx_job_whose_rank_is_killed_goes_on(tmp_path):
    """On this machine no scheduler starts a job again: the launcher does."""
    run, steps = tmp_path / "run", 300
    write_toy(tmp_path / "data")
    train = training(tmp_path / "data", run, training__max_steps=steps, checkpoint__every_steps=10)[1:]
    with torchx_start(
        *("local_cwd", "train.py:ddp", "--ranks", 2, "--max_restarts", 1, "--", *train), env={}, folder=tmp_path
    ) as job:
        try:
            wait_for(lambda: last_step(run) >= 20)
            ranks_of(run)[1].kill()
            _, said = job.communicate(timeout=900)
        finally:
            job.terminate()
    assert job.returncode == 0, said
    assert results_of(run, 2)["steps"] == steps
