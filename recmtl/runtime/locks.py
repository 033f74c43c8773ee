"""Locks that end with their process, and in object stores leases, which expire some time after it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recmtl.errors import UserError
from recmtl.runtime.leases import leased
from recmtl.runtime.storage import renames_folders

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer."""


@contextmanager
def locked(path: Path, what: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock of a file, made where it is missing; the system lets go of it when the process ends, however.

    Args:
        path: the lock file, in an object store the folder of the leases. Nobody may remove it but its holder.
        what: what it guards, for the message.

    Yields:
        What raises UserError once the lock is lost, as a lease may be.

    Raises:
        UserError: another process holds it.
    """
    if not renames_folders(path):
        with leased(path, what) as check:
            yield check
        return
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
        except OSError as error:
            if error.errno not in NO_LOCKS:
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
        yield lambda: None
