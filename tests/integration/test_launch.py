"""Several ranks through `recmtl.launch`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

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


def test_dashes_must_separate_torchruns_options():
    ended = subprocess.run([sys.executable, "-m", "recmtl.launch", "train"], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "'--' is missing" in ended.stderr


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
