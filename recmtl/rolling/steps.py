"""Steps of a day: other commands of recmtl as processes of their own, each with a log file."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recmtl.errors import Stopped
from recmtl.rolling.record import Cost
from recmtl.runtime.exit import TERMINATED, end_with_parent
from recmtl.runtime.storage import make_folder, open_append, os_errors, read_text

LOGS = "logs"


class StepFailed(Exception):
    """A step ended with an error; the message is its line.

    Args:
        line: what to say.
        code: the exit code of the step.
    """

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.code = code


@dataclass(frozen=True)
class Command:
    """A command of recmtl.

    Args:
        words: the command and its arguments.
        ranks: processes that run it together; 1: a single one without a launcher.
    """

    words: Sequence[str]
    ranks: int = 1

    @property
    def line(self) -> list[str]:
        """The command line."""
        if self.ranks == 1:
            return [sys.executable, "-m", "recmtl", *self.words]
        launcher = ["-m", "recmtl.launch", "--standalone", "--nproc-per-node", str(self.ranks), "--"]
        return [sys.executable, *launcher, *self.words]


def run_step(command: Command, day: str, log: Path) -> Cost:
    """Run a command to its end; what it says goes to the end of a file.

    SIGTERM and Ctrl-C are passed on as SIGTERM, so that a run is saved, and the command is waited for.

    Args:
        command: what to run.
        day: that it is a step of, for messages.
        log: the file.

    Raises:
        StepFailed: it ended with an error.
        Stopped: SIGTERM ended it, which came to this process or to it.
        KeyboardInterrupt: this process was to end, and it ended in another way.
        UserError: the log cannot be written.
    """
    what = f"{day} {log.stem}"
    with os_errors(log):
        make_folder(log.parent)
        with open_append(log) as file:
            before, began = _cpu_seconds(), time.monotonic()
            process = subprocess.Popen(
                command.line, stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=end_with_parent
            )
            code, interrupted = _wait(process)
    if code == TERMINATED:
        raise Stopped(f"{what}: stopped; the same command goes on")
    if interrupted:
        raise KeyboardInterrupt
    if code < 0:
        raise StepFailed(f"error: {what}: was ended by signal {-code}; see {log}", 128 - code)
    if code:
        raise StepFailed(_complaint(what, log), code)
    return Cost(round(time.monotonic() - began, 3), round(_cpu_seconds() - before, 3))


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """The exit code of a process, and whether this one was interrupted meanwhile, which is passed on once."""
    interrupted = False
    while True:
        try:
            return process.wait(), interrupted
        except KeyboardInterrupt:
            if not interrupted:
                process.send_signal(signal.SIGTERM)
            interrupted = True


def _complaint(what: str, log: Path) -> str:
    """The line with which a step ended."""
    lines = [line for line in read_text(log, errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no word")
    return f"error: {what}: {said.removeprefix('error: ')} ({log})"


def _cpu_seconds() -> float:
    """Of all processes that were waited for, and those that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
