"""Jobs of several ranks that tests watch, signal and kill."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 300.0
"""Seconds that a test waits for anything before it fails."""


def words(flags: dict[str, Any]) -> list[str]:
    """A configuration's keys as options of the command line."""
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


SURVIVORS = {
    "training.batch_size": 64,
    "training.max_epochs": 1000,
    "training.patience": 0,
    "training.device": "cpu",
    "model.dropout": 0.1,
    "metrics.every_steps": 1,
    "metrics.tensorboard": False,
}
"""Settings of the jobs that tests disturb: dropout, so that random states count, and every step logged."""


def training(data: Path, run: Path, **flags: Any) -> list[object]:
    """The command line that trains such a job; `section__key` sets a key."""
    settings = SURVIVORS | {key.replace("__", "."): value for key, value in flags.items()}
    return ["train", "mmoe", "--data", data, "--run", run, *words(settings)]


class Job:
    """A running `recmtl`, under the launcher where it has one.

    Args:
        args: the command line; everything is turned into text.
        launcher: options of the launcher; none: one process without it.
        env: environment variables to add.
        before: called in the process before it becomes `recmtl`.

    Attributes:
        process: the launcher, or the only rank.
        stdout, stderr: what it said, when it has ended.
    """

    def __init__(
        self,
        *args: object,
        launcher: list[str] | None = None,
        env: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        start = ["recmtl"] if launcher is None else ["recmtl.launch", *launcher, "--"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *start, *map(str, args)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=before,
        )
        self.stdout = self.stderr = ""

    def ranks(self, restart: int = 0) -> dict[int, psutil.Process]:
        """The processes of the ranks, by rank, of the launcher's first start or a later one; those that are there."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                environment = child.environ()
                if int(environment.get("TORCHELASTIC_RESTART_COUNT", -1)) == restart:
                    found[int(environment["RANK"])] = child
            except psutil.Error:
                continue
        return found

    def wait_for(self, condition: Callable[[], Any], pause: float = 0.02) -> Any:
        """What `condition` gives as soon as that is true; fails when the job ends before."""
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(pause)
        return found

    def end(self, patience: float = PATIENCE) -> int:
        """Wait for its end, so many seconds at most; returns the exit code."""
        self.stdout, self.stderr = self.process.communicate(timeout=patience)
        return self.process.returncode

    def kill(self) -> None:
        """End it with all its ranks, whatever they do."""
        if self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
            self.end()


@contextmanager
def running(*args: object, **options: Any) -> Iterator[Job]:
    """A job that does not outlive the block; what it said is shown when the block fails."""
    job = Job(*args, **options)
    try:
        yield job
    except BaseException:
        job.kill()
        print(job.stdout, job.stderr)
        raise
    finally:
        job.kill()


def standalone(ranks: int, restarts: int = 0) -> list[str]:
    """Options of the launcher for ranks of this machine."""
    return ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("localhost", 0)) as listener:
        return listener.getsockname()[1]


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl; 0: none yet."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except ValueError:  # half written
            continue
    return 0


def weights(checkpoint: Path) -> dict[str, Any]:
    """Checksums of the files that hold a checkpoint's tensors: equal ones hold equal bits."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    return {name: entry for name, entry in manifest.items() if name.endswith(".distcp")}
