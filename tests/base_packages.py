"""An environment with the base dependencies of the package and nothing else, made of links to what is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHECKOUT = Path(__file__).resolve().parent.parent


def base_requirements() -> list[str]:
    """What `pip install recmtl` asks for."""
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]


def make_site(folder: Path) -> set[str]:
    """Link the base dependencies, all that they require, and recmtl into a folder; returns the names of the former."""
    folder.mkdir()
    waiting, found = [Requirement(text) for text in base_requirements()], set()
    while waiting:
        wanted = waiting.pop()
        applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        name = canonicalize_name(wanted.name)
        if not applies or name in found:
            continue
        found.add(name)
        installed = distribution(wanted.name)
        assert installed.files is not None
        for top in {path.parts[0] for path in installed.files} - {"..", "__pycache__"}:
            (folder / top).symlink_to(Path(str(installed.locate_file(top))))
        waiting += map(Requirement, installed.requires or [])
    (folder / "recmtl").symlink_to(CHECKOUT / "recmtl")
    return found


def run_there(site: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python with these packages alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-S", *map(str, words)],
        env={**environment, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=300,
    )
