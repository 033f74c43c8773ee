"""Lists and help answer without the heavy libraries. (Who imports whom is checked by `make lint`.)"""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchrec", "fbgemm_gpu", "duckdb", "pyarrow", "matplotlib")
LOADED = """
import sys
from recmtl.cli import main
try:
    main()
finally:
    print("loaded:", *sys.modules)
"""


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "models",
        "presets",
        "recipes",
        "train --help",
        "train mmoe --help",
        "train pepnet --help",
        "plan mmoe --help",
        *(f"{command} --help" for command in ("prepare", "synth", "evaluate", "report")),
    ],
)
def test_lists_and_help_import_nothing_heavy(command):
    ended = subprocess.run([sys.executable, "-c", LOADED, *command.split()], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    *shown, loaded = ended.stdout.splitlines()
    assert len(shown) > 3
    # What kinds of features there are, which recipes are checked for, is said where their columns are made.
    allowed = {"pyarrow"} if command == "recipes" else set()
    assert set(HEAVY) & set(loaded.split()) <= allowed
