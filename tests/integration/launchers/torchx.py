"""`torchx run` as a user types it, and a look at what came out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[3]


def torchx_run(
    scheduler: str,
    component: str,
    *args: object,
    env: Mapping[str, str],
    folder: Path,
    options: tuple[str, ...] = ("--wait", "--log"),
    timeout: float = 900,
) -> subprocess.CompletedProcess[str]:
    """Run a component on a scheduler by its settings in torchx_specs/, and wait for its end.

    Args:
        scheduler: its name.
        component: file and function, such as `train.py:ddp`.
        args: arguments of the component.
        env: environment variables to add.
        folder: where torchx runs, and Slurm leaves its logs.
        options: of `torchx run`.
        timeout: seconds after which the test fails.
    """
    beside = Path(sys.executable).parent
    return subprocess.run(
        [beside / "torchx", "run", *options, "-s", scheduler, CHECKOUT / "components" / component, *map(str, args)],
        env={
            **os.environ,
            "PATH": f"{beside}:{os.environ['PATH']}",
            "TORCHXCONFIG": str(CHECKOUT / "torchx_specs" / f"{scheduler}.torchxconfig"),
            **env,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def results_of(run: Path, world_size: int) -> dict[str, Any]:
    """A finished run's results, from ranks as many as asked for, better than chance on every row."""
    results = json.loads((run / "results.json").read_text())
    assert results["world_size"] == world_size
    for metrics in results["test"].values():
        assert metrics["rows"] > 0
        assert metrics["auc"] > 0.55
    return results
