"""Leases: who may write to a folder of an object store, which has no locks that end with their process.

A lease is a file in a folder of its own, whose name is a number, its fencing token: a later lease has a higher one,
and the highest counts. It is made by a conditional create, which one of several callers wins, and its holder writes it
again every `HEARTBEAT_SECONDS`. One that was not written for `LEASE_SECONDS`, by the store's clock, has expired:
another process may make the next. Before a holder makes anything count, it looks whether the highest lease is still its
own, and was renewed not too long ago by its own clock: so one that stood still for long knows that it may have lost it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recmtl.errors import StorageError, UserError
from recmtl.runtime import remote

HEARTBEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0


class Lease:
    """A lease that this process holds.

    Args:
        folder: of the leases.
        what: what they guard, for messages.

    Raises:
        UserError: another process holds one.
    """

    def __init__(self, folder: Path, what: Path) -> None:
        self.folder, self.what = folder, what
        self._holder = {**_this_process(), "id": uuid.uuid4().hex}
        self._end = threading.Event()
        self._writing = threading.Lock()
        self._beats = 0
        while True:
            newest = _newest(folder)
            if newest is not None:
                _wait_until_free(newest, what)
            self.token = 1 if newest is None else int(newest.name) + 1
            self._written = time.monotonic()
            if remote.create(self._path, self._text()):
                break
        for path in remote.list_folder(folder):
            if path.name < self._path.name:
                remote.remove(path)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.token:09d}"

    def _text(self) -> bytes:
        self._beats += 1
        return json.dumps({**self._holder, "beat": self._beats}).encode()

    def _renew(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            began = time.monotonic()
            with suppress(StorageError), self._writing:
                if self._end.is_set() or not self._is_newest():
                    return
                remote.write_bytes(self._path, self._text())
                self._written = began

    def _is_newest(self) -> bool:
        newest = _newest(self.folder)
        return newest is not None and newest.name == self._path.name and _read(newest).get("id") == self._holder["id"]

    def check(self) -> None:
        """Raise UserError unless this process holds the lease, and will for long enough to write a small file."""
        fresh = time.monotonic() - self._written < LEASE_SECONDS - HEARTBEAT_SECONDS
        if not (fresh and self._is_newest()):
            raise UserError(f"{self.what}: another process took it over, as this one did not answer; it writes no more")

    def release(self) -> None:
        """Let others have it."""
        self._end.set()
        with suppress(StorageError), self._writing:
            if self._is_newest():
                remote.remove(self._path)


@contextmanager
def leased(folder: Path, what: Path) -> Iterator[Callable[[], None]]:
    """Hold a lease; yields what raises UserError once it is lost."""
    lease = Lease(folder, what)
    try:
        yield lease.check
    finally:
        lease.release()


def _newest(folder: Path) -> Path | None:
    return max((path for path in remote.list_folder(folder) if path.name.isdigit()), default=None)


def _read(path: Path) -> dict[str, object]:
    try:
        return dict(json.loads(remote.read_bytes(path)))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _wait_until_free(path: Path, what: Path) -> None:
    """Wait until a lease is let go of or expired.

    Raises:
        UserError: its holder shows that it is alive.
    """
    first = holder = _read(path)
    if not holder or _is_gone(holder):
        return
    who = f"process {holder.get('pid')} on {holder.get('host')}"
    left = LEASE_SECONDS - _age(path)
    if left > 0:
        print(f"{what}: held by {who}; waiting {left:.0f} s at most to see whether it is alive", file=sys.stderr)
    deadline = time.monotonic() + left
    while holder and not _is_gone(holder) and time.monotonic() < deadline:
        if holder.get("beat") != first.get("beat"):
            raise UserError(f"{what}: in use by {who}; wait for it to end or name another folder")
        time.sleep(min(1.0, LEASE_SECONDS / 20))
        holder = _read(path)


def _age(path: Path) -> float:
    """Seconds since a lease was written, by the clock of the store."""
    probe = path.with_name(f"now-{uuid.uuid4().hex}")
    remote.write_bytes(probe, b"")
    now = remote.modified(probe)
    remote.remove(probe)
    with suppress(FileNotFoundError):
        return max(0.0, (now - remote.modified(path)).total_seconds())
    return LEASE_SECONDS


def _this_process() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine(), "started": _started(os.getpid())}


def _machine() -> str:
    """What tells the processes that this one can see from others of the same number."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    return ""


def _started(pid: int) -> str:
    """When a process of this machine was started, in the kernel's ticks; empty: there is none that runs."""
    with suppress(OSError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]
    return ""


def _is_gone(holder: dict[str, object]) -> bool:
    """Whether the holder was a process of this machine and has ended."""
    pid = holder.get("pid")
    here = bool(holder.get("machine")) and holder["machine"] == _machine()
    return here and isinstance(pid, int) and _started(pid) != holder.get("started")
