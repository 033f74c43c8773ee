"""The steps of a day as processes: what they say goes to a file, and how they end is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recmtl.rolling.steps import Command, StepFailed, run_step


def test_a_step_writes_what_it_says_and_tells_what_it_cost(tmp_path):
    log = tmp_path / "logs" / "2023-05-01" / "models.log"
    cost = run_step(Command(["models"]), "2023-05-01", log)
    assert "mmoe" in log.read_text()
    assert cost.cpu_seconds > 0
    assert cost.seconds > 0
    once = log.read_text()
    run_step(Command(["models"]), "2023-05-01", log)
    assert log.read_text() == 2 * once  # nothing of an earlier start is lost


def test_a_step_that_ends_with_an_error_says_its_line(tmp_path):
    log = tmp_path / "presets.log"
    with pytest.raises(StepFailed) as failed:
        run_step(Command(["presets", "show", "mmeo"]), "2023-05-01", log)
    assert failed.value.code == 2
    assert str(failed.value) == f"error: 2023-05-01 presets: no preset 'mmeo'; did you mean 'mmoe'? ({log})"


def test_several_ranks_need_a_launcher():
    assert Command(["train", "mmoe"], 3).line[1:] == [
        *("-m", "recmtl.launch", "--standalone", "--nproc-per-node", "3", "--"),
        *("train", "mmoe"),
    ]


def scripted(monkeypatch: pytest.MonkeyPatch, script: str) -> Command:
    """A step that is a shell script."""
    monkeypatch.setattr(Command, "line", ["sh", "-c", script])
    return Command([])


def test_a_signal_that_ends_a_step_is_told(tmp_path, monkeypatch):
    with pytest.raises(StepFailed, match=r"2023-05-01 train: was ended by signal 9; see .*train\.log") as failed:
        run_step(scripted(monkeypatch, "kill -9 $$"), "2023-05-01", tmp_path / "train.log")
    assert failed.value.code == 137


def test_an_interruption_is_passed_on_once_and_waited_for(tmp_path):
    """Of the process that runs the step: SIGTERM twice, and the step takes its time to save."""
    saves = f"trap 'sleep 0.5; echo saved >> {tmp_path}/said; exit 143' TERM"
    script = f"{saves}; touch {tmp_path}/up; while :; do sleep 0.1; done"
    program = f"""
from pathlib import Path
from recmtl.errors import Stopped
from recmtl.rolling.steps import Command, run_step
from recmtl.runtime.exit import interrupt_on_signals
interrupt_on_signals()
Command.line = ["sh", "-c", {script!r}]
try:
    run_step(Command([]), "day", Path({str(tmp_path / "step.log")!r}))
except Stopped as stopped:
    assert str(stopped) == "day step: stopped; the same command goes on"
    raise SystemExit(7)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    wait_for(tmp_path / "up")
    process.terminate()
    time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=60) == 7
    assert (tmp_path / "said").read_text() == "saved\n"


def test_a_step_does_not_outlive_its_job(tmp_path):
    """Not even where the job has no time to end it."""
    program = f"""
import subprocess
from recmtl.runtime.exit import end_with_parent
child = subprocess.Popen(["sleep", "600"], preexec_fn=end_with_parent)
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
open({str(tmp_path / "up")!r}, "w").close()
child.wait()
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    wait_for(tmp_path / "up")
    child = int((tmp_path / "pid").read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(number: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
