"""Who imports whom: lists and help answer without the heavy libraries, and folders know only those below them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import recmtl

PACKAGE = Path(recmtl.__file__).parent
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


FORBIDDEN = {
    "config": ("data", "models", "objectives", "optim", "distributed", "training", "report"),
    "models": (
        *("data.read", "objectives", "optim", "distributed", "training", "report"),
        *("config.sections.WeightingConfig", "config.WeightingConfig"),
    ),
    "objectives": ("data.read.reader", "optim", "distributed", "training", "report"),
    "optim": ("data", "models", "objectives", "distributed", "training", "report"),
    "distributed": ("training", "report"),
}
"""What a folder must not import, by the folder."""


def imported(path: Path) -> set[str]:
    """Modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_folders_know_only_those_below_them(folder):
    files = list((PACKAGE / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            assert not any(f"{name}.".startswith(f"recmtl.{other}.") for other in FORBIDDEN[folder]), (path, name)
