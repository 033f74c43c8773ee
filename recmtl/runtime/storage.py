"""Folders that are complete or absent, files that are whole, and locks that end with their process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recmtl.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer."""


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into the user's.

    Raises:
        UserError: names the file, or `path` where the error has none.
    """
    try:
        yield
    except OSError as problem:
        raise UserError(f"{problem.filename or path}: {problem.strerror or problem}") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, also when the machine loses power."""
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with os_errors(path):
        write_whole(path, json.dumps(value, indent=2) + "\n")


def link_folder(source: Path, target: Path) -> None:
    """Give `target` the files of a folder that are never written again: as links where the file system has them, so
    that they take no space twice, else as copies. It is complete or absent; what is there already is replaced.
    """
    unfinished = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for path in source.iterdir():
        try:
            os.link(path, unfinished / path.name)
        except OSError:
            shutil.copyfile(path, unfinished / path.name)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, what: Path) -> Iterator[None]:
    """Hold the lock of a file, made where it is missing; the system lets go of it when the process ends, however.

    Args:
        path: the lock file. Nobody may remove it but its holder.
        what: what it guards, for the message.

    Raises:
        UserError: another process holds it.
    """
    while True:
        # For appending: an exclusive lock over NFS wants a file open for writing, and the holder's line must stay.
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(f"{what}: in use by {holder}; wait for it to end or name another folder") from None
        except OSError as problem:
            if problem.errno not in NO_LOCKS:
                raise
            note = f"{what}: its file system has no locks; take care that no other job writes to it"
            print(note, file=sys.stderr)
        with suppress(FileNotFoundError):  # its holder removed it between our opening and locking it
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextmanager
def complete_or_absent(out: Path, check_replaceable: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A hidden folder beside `out`: its ``data`` becomes `out` if nothing goes wrong, and the rest is removed.

    What a killed process left there is removed first; where it was killed while it replaced `out`, the old `out` comes
    back.

    Args:
        out: folder to write; absent or empty, unless it may be replaced.
        check_replaceable: raises UserError unless `out`, which is not empty, may be replaced. It is asked before the
            work and again before `out` is removed.

    Raises:
        UserError: `out` is not empty, cannot be written, or another process is writing it.
    """
    target = out.absolute()
    work = target.with_name(f".{target.name}.tmp")
    replaced = work / "replaced"

    def check() -> None:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        if check_replaceable is None:
            raise UserError(f"{out}: exists and is not empty; remove it or name another folder")
        check_replaceable(out)

    if not replaced.exists():
        check()
    try:
        work.mkdir(parents=True, exist_ok=True)
        with locked(work / "lock", out):
            try:
                if replaced.exists() and not target.exists():
                    replaced.rename(target)
                check()
                for left in work.iterdir():
                    if left.name != "lock":
                        shutil.rmtree(left)
                (work / "data").mkdir()
                yield work
                check()
                if target.exists():
                    target.rename(replaced)
                (work / "data").rename(target)
            finally:
                if replaced.exists() and not target.exists():
                    replaced.rename(target)
                shutil.rmtree(work, ignore_errors=True)
    except OSError as problem:
        raise UserError(f"{out}: cannot be written ({problem.strerror or problem})") from None


@contextmanager
def file_complete_or_absent(out: Path) -> Iterator[Path]:
    """A hidden file beside `out` that becomes `out` if nothing goes wrong, and is removed otherwise.

    Raises:
        UserError: `out` exists or cannot be written.
    """
    if out.exists():
        raise UserError(f"{out}: exists; remove it or name another file")
    unfinished = out.absolute().with_name(f".{out.name}.tmp")
    with os_errors(out):
        try:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            unfinished.replace(out)
        finally:
            unfinished.unlink(missing_ok=True)
