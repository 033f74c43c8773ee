"""A standalone cluster of Spark on this machine: a master and workers as processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
SECONDS = 120


@dataclass(frozen=True)
class Cluster:
    master: str
    workers: list[subprocess.Popen[bytes]]

    def executors(self) -> list[int]:
        """The processes of executors."""
        found = [child for worker in self.workers for child in children(worker.pid)]
        return [pid for pid in found if "CoarseGrainedExecutorBackend" in command(pid)]


def children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for path in tasks for pid in path.read_text().split()]


def command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@contextmanager
def spark_cluster(folder: Path, workers: int = 2, hidden: Path | None = None) -> Iterator[Cluster]:
    """Start a master and workers of one core each, and end them, with all that they started.

    Args:
        folder: for logs and work.
        workers: how many.
        hidden: folder that they do not see, as if they were on other machines; skips where that needs another user.
    """
    hide: list[str] = []
    if hidden is not None:
        if os.geteuid():
            pytest.skip("only root hides a folder from processes")
        hide = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none '{hidden}' && exec \"$@\"", "sh"]
    import pyspark

    spark_class = Path(pyspark.__file__).parent / "bin" / "spark-class"
    environment = {
        **os.environ,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": str(CHECKOUT),
        "OMP_NUM_THREADS": "1",
    }
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: object) -> Path:
        log = folder / f"{name}.log"
        with log.open("wb") as file:
            deploy = f"org.apache.spark.deploy.{name.split('-')[0]}"
            classes = {"master": f"{deploy}.Master", "worker": f"{deploy}.Worker"}
            words = (
                *hide,
                spark_class,
                classes[name.split("-")[0]],
                "--host",
                "127.0.0.1",
                "--webui-port",
                "0",
                *words,
            )
            process = subprocess.Popen(
                list(map(str, words)), env=environment, stdout=file, stderr=file, start_new_session=True
            )
        started.append(process)
        return log

    try:
        master = said(start("master", "--port", "0"), r"Starting Spark master at (spark://\S+)")
        for number in range(workers):
            words = ("--cores", "1", "--memory", "2g", "--work-dir", folder / f"work-{number}", master)
            said(start(f"worker-{number}", *words), "(Successfully registered)")
        yield Cluster(master, started[1:])
    finally:
        for process in reversed(started):
            # Executors are in the group of their worker, and their Python processes end with them.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def said(log: Path, pattern: str) -> str:
    """Wait for a line, and return what it says."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := re.search(pattern, log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.2)
    raise AssertionError(f"{log.name} never said {pattern}:\n{log.read_text(errors='replace')}")
