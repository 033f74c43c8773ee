"""Lists and help answer without the heavy libraries. (Who imports whom is checked by `make lint`.)"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import recmtl

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


def private_imports(path: Path) -> list[str]:
    """What a file imports of PyTorch and TorchRec that they do not promise to keep."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.startswith("torch") and "._" in name]


def test_private_parts_of_pytorch_stand_behind_one_module():
    package = Path(recmtl.__file__).parent
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if private_imports(path)}
    assert found == {"runtime/private_api.py"}
