"""Daemons that live as long as a block, and what tests need before they start any."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ADMIN_PATH = f"/usr/sbin:/sbin:{os.environ['PATH']}"
"""Where daemons are, too."""


def require(*programs: str, packages: str) -> None:
    """Skip, and say why, unless this is root and all programs are there.

    Args:
        programs: their names.
        packages: the Debian packages they are in.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root: it starts daemons or makes networks")
    missing = [program for program in programs if not shutil.which(program, path=ADMIN_PATH)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install {packages}")


@contextmanager
def daemon(
    command: Sequence[object],
    log: Path,
    ready: Callable[[], bool],
    env: Mapping[str, str] | None = None,
    timeout: float = 90,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon that stays in the foreground, and end it after the block.

    Args:
        command: the daemon and its options.
        log: file for what it says.
        ready: whether it serves yet.
        env: environment variables to add.
        timeout: seconds that it may take to be ready.

    Raises:
        RuntimeError: it ended, or did not become ready in time; with the end of its log.
    """
    words = [str(word) for word in command]
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *words],  # or a test run that is killed would leave it behind
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": ADMIN_PATH, **(env or {})},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + timeout
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words[0]} does not serve:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def succeeds(*command: object, env: Mapping[str, str] | None = None) -> bool:
    """Whether a command ends with 0; what it says is thrown away."""
    words = [str(word) for word in command]
    env = {**os.environ, "PATH": ADMIN_PATH, **(env or {})}
    return subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def run(*command: object) -> None:
    """Run a command; the test fails with what it said if it fails."""
    words = [str(word) for word in command]
    env = {**os.environ, "PATH": ADMIN_PATH}
    ended = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert ended.returncode == 0, f"{' '.join(words)}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
