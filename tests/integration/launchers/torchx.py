"""`torchx run` as a user types it, and a look at what came out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

CHECKOUT = Path(__file__).resolve().parents[3]


def torchx_start(
    scheduler: str,
    component: str,
    *args: object,
    env: Mapping[str, str],
    folder: Path,
    options: tuple[str, ...] = ("--wait", "--log"),
) -> subprocess.Popen[str]:
    """Run a component on a scheduler by its settings in torchx_specs/.

    Args:
        scheduler: its name.
        component: file and function, such as `train.py:ddp`.
        args: arguments of the component.
        env: environment variables to add.
        folder: where torchx runs, and Slurm leaves its logs.
        options: of `torchx run`.
    """
    beside = Path(sys.executable).parent
    return subprocess.Popen(
        [beside / "torchx", "run", *options, "-s", scheduler, CHECKOUT / "components" / component, *map(str, args)],
        env={
            **os.environ,
            "PATH": f"{beside}:{os.environ['PATH']}",
            "TORCHXCONFIG": str(CHECKOUT / "torchx_specs" / f"{scheduler}.torchxconfig"),
            **env,
        },
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchx_run(*args: object, timeout: float = 900, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `torchx_start`, and wait for its end, which must come within `timeout` seconds."""
    process = torchx_start(*args, **options)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def ranks_of(run: object) -> dict[int, psutil.Process]:
    """The processes of this machine, in containers too, that train into a folder, by rank."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, KeyError):
            if str(run) in process.cmdline():
                found[int(process.environ()["RANK"])] = process
    return found


def wait_for(condition: Callable[[], T], timeout: float = 900) -> T:
    """What `condition` gives as soon as that is true."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def results_of(run: Path, world_size: int) -> dict[str, Any]:
    """A finished run's results, from ranks as many as asked for, better than chance on every row."""
    results = json.loads((run / "results.json").read_text())
    assert results["world_size"] == world_size
    for metrics in results["test"].values():
        assert metrics["rows"] > 0
        assert metrics["auc"] > 0.55
    return results
