"""A running application of Spark: started and ended, its jobs shown, its errors in one line."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from py4j.protocol import Py4JError, Py4JNetworkError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.java_gateway import launch_gateway

from recmtl.data.prepare.spark.errors import driver_error
from recmtl.runtime.progress import Progress, polled
from recmtl.runtime.storage import make_folder, open_write, read_text

T = TypeVar("T")

SUBMITTED = "PYSPARK_GATEWAY_PORT"
"""Environment variable that ``spark-submit`` sets."""
PATIENCE_SECONDS = 30.0
"""Without an executor, before the user is told."""


class Session:
    """Runs jobs.

    Args:
        context: of Spark.
        progress: where to show them.
    """

    def __init__(self, context: SparkContext, progress: Progress) -> None:
        self.context = context
        self._progress = progress
        self._began = time.monotonic()

    def run(self, name: str, job: Callable[[], T]) -> T:
        """Run a job."""
        self.context.setJobDescription(name)
        with self._progress.stage(name, 100) as advance, polled(self._percent, advance):
            return job()

    def _percent(self) -> float:
        """How many of the tasks of the running job's stages are done."""
        with suppress(Py4JError, OSError):  # Spark has ended, of which the job tells
            self._check_executors()
            tracker = self.context.statusTracker()
            jobs = filter(None, map(tracker.getJobInfo, tracker.getActiveJobsIds()))
            stages = list(filter(None, (tracker.getStageInfo(stage) for job in jobs for stage in job.stageIds)))
            if tasks := sum(stage.numTasks for stage in stages):
                return 100 * sum(stage.numCompletedTasks for stage in stages) / tasks
        return 0.0

    def _check_executors(self) -> None:
        """Tell a user once that no executor has come."""
        if time.monotonic() < self._began + PATIENCE_SECONDS:
            return
        self._began = float("inf")
        java: Any = self.context
        master = str(self.context.master)
        if not master.startswith("local") and java._jsc.sc().getExecutorMemoryStatus().size() < 2:
            self._progress.note(f"{master}: no executor has come yet; are its workers up, and have they room?")


@contextmanager
def open_session(name: str, master: str | None, folder: Path, progress: Progress) -> Iterator[Session]:
    """Start an application of Spark and end it.

    Args:
        name: of the application.
        master: such as ``spark://HOST:7077`` or ``local[4]``; None: as Spark's own settings say, or all local cores.
        folder: for what Spark's own process says, which nobody needs to see.
        progress: where to show jobs.

    Raises:
        UserError: Spark does not start or ends, or the user's mistake in a task; says why.
        RuntimeError: another error in a task.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    conf = SparkConf().set("spark.ui.showConsoleProgress", "false").setAppName(name)
    if master is not None:
        conf.setMaster(master)
    submitted = SUBMITTED in os.environ
    make_folder(folder)
    log = folder / "log"
    with open_write(log) as said:
        gateway = context = None
        try:
            if not submitted:
                gateway = _launch(conf, {"stdout": said, "stderr": said})
            context = SparkContext(conf=conf, gateway=gateway)
            if submitted:  # Java's process is not ours
                context.setLogLevel("OFF")
            yield Session(context, progress)
        except (Py4JError, PySparkException, ConnectionError) as error:
            raise driver_error(_text(error), read_text(log, errors="replace")) from None
        finally:
            _close(context, gateway)


def _launch(conf: SparkConf, streams: dict[str, Any]) -> Any:
    """Start Java's process; one that is interrupted while it starts would wait for its end forever."""
    before = _children()
    try:
        return launch_gateway(conf, streams)
    except BaseException:
        for pid in _children() - before:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        raise


def _children() -> set[int]:
    """Processes that this one has started."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in tasks for pid in read_text(path).split()}


def _close(context: Any, gateway: Any) -> None:
    """End an application, and the Java process where it was started here."""
    if context is not None:
        with suppress(Py4JError, OSError):  # it has ended already
            context.stop()
    if gateway is not None:
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait()
        SparkContext._gateway = SparkContext._jvm = None


def _text(error: Exception) -> str:
    """What an error says; empty where Spark's process, which knows, has ended or did not start."""
    with suppress(Py4JError, OSError):
        return "" if isinstance(error, (Py4JNetworkError, PySparkException, OSError)) else str(error)
    return ""
