"""Copies of objects on this machine, for what must be a local file: arrays that are mapped, a model that is loaded.

A copy is named by the URL and by what the store says of the object, so that another version is another copy. It is
complete or absent; processes of one machine fetch it once. The least recently used go when all of them together take
more than ``RECMTL_CACHE_GB``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from recmtl.errors import StorageError, UserError
from recmtl.runtime import remote
from recmtl.runtime.scratch import CACHE, cache_folder

LIMIT, DEFAULT_GB = "RECMTL_CACHE_GB", 100.0
PART_BYTES = 2**24
"""Fetched by one request."""

_used: set[Path] = set()
"""Copies that this process uses: they stay."""


def local_copy(path: Path) -> Path:
    """The copy of a file on this machine, fetched where it is missing.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it cannot be fetched, or not be kept here.
    """
    size, version = remote.describe(path)
    key = hashlib.sha256(f"{path} {version}".encode()).hexdigest()[:32]
    copy = cache_folder("files") / key / path.name
    _used.add(copy)
    try:
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            with (copy.parent / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not copy.exists():
                    _fetch(path, size, copy)
        os.utime(copy)
    except FileNotFoundError:
        raise
    except OSError as error:
        where = f"the local copy in {copy.parent} cannot be written ({error.strerror}); {CACHE} names another folder"
        raise StorageError(path, where) from None
    return copy


def _fetch(path: Path, size: int, copy: Path) -> None:
    _make_room(size)
    unfinished = copy.with_name(f".{copy.name}.tmp")
    with unfinished.open("wb") as file, ThreadPoolExecutor(remote.THREADS) as pool:
        file.truncate(size)

        def fetch(start: int) -> None:
            content = remote.read_bytes(path, start, min(start + PART_BYTES, size))
            os.pwrite(file.fileno(), content, start)

        for _ in pool.map(fetch, range(0, size, PART_BYTES)):
            pass
    unfinished.replace(copy)


def _make_room(size: int) -> None:
    """Remove the copies that were used longest ago, as far as the limit asks for it."""
    try:
        limit = float(os.environ.get(LIMIT) or DEFAULT_GB) * 1e9 - size
    except ValueError:
        raise UserError(f"{LIMIT}: {os.environ[LIMIT]!r} is no number of gigabytes") from None
    found = []
    for copy in cache_folder("files").glob("*/*"):
        with suppress(OSError):
            described = copy.stat()
            if not copy.name.startswith("."):
                found.append((described.st_mtime, described.st_size, copy))
    total = sum(each[1] for each in found)
    for _, bytes_, copy in sorted(found):
        if total <= limit:
            return
        if copy not in _used:
            copy.unlink(missing_ok=True)
            total -= bytes_
