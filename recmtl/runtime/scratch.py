"""Folders of this machine for what lies in an object store: copies that are kept, and work that ends with the process.

``RECMTL_CACHE`` names the folder that holds both; without it that is ``~/.cache/recmtl``.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

CACHE = "RECMTL_CACHE"


def cache_folder(name: str) -> Path:
    """A folder below that for copies and work, made where it is missing."""
    root = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recmtl"
    folder = Path(root).absolute() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _own(pid: int) -> tuple[Path, IO[str]]:
    """The process's folder, and its lock, which the system lets go of when the process ends, however."""
    root = cache_folder("scratch")
    with (root / "lock").open("w") as all_of_them:
        fcntl.flock(all_of_them, fcntl.LOCK_EX)
        for left in root.iterdir():
            if left.is_dir() and not _is_held(left / "lock"):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=root, prefix=f"{pid}-"))
        lock = (folder / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def scratch_folder() -> Path:
    """The folder of this process for work. What a process leaves there, the next one to ask for a folder removes."""
    return _own(os.getpid())[0]
