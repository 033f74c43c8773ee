"""A step on a GPU must not hold up the host, which would leave the GPU without work until it is asked again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def test_the_host_waits_in_no_step_but_those_of_multibalance():
    """It is a process of its own, for a stand-in for a GPU stays registered with PyTorch.

    `multibalance` finds its weights on the host, as its docstring says.
    """
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, TESTS / "host_waits.py"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert any(line.startswith("aitm multibalance") for line in lines)
    assert not [line for line in lines if not line.startswith("aitm multibalance")]
