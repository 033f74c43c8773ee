"""An object as a file to be read here and there, and what of it is fetched before it is asked for."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from recmtl.runtime import remote

BLOCK_BYTES = 2**20
"""The least that a request fetches: a small one takes as long."""
TAIL_BYTES = 2**16
"""The end of a file, where Parquet has its footer; as much as Arrow asks for first."""
TAILS = 1000
"""Ends of files that are kept, those used last."""
REQUESTS = 16
"""Under way at a time before what they fetch is asked for."""

_tails: OrderedDict[tuple[str, str], bytes] = OrderedDict()
_lock = threading.Lock()


class Ahead:
    """Ranges of files on their way, each fetched once and given away once."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(REQUESTS, "recmtl-ahead")
        self._ranges: dict[tuple[Path, int, int], Future[bytes]] = {}
        self._lock = threading.Lock()

    def expect(self, path: Path, start: int, stop: int) -> None:
        """Begin to fetch the bytes `start` up to `stop` of a file, which will be read as one."""
        with self._lock:
            if (path, start, stop) not in self._ranges:
                self._ranges[path, start, stop] = self._pool.submit(remote.read_bytes, path, start, stop)

    def take(self, path: Path, start: int, stop: int) -> tuple[int, bytes] | None:
        """What was expected and holds these bytes, with the place where it begins; None: nothing was."""
        with self._lock:
            found = next((key for key in self._ranges if key[0] == path and key[1] <= start and stop <= key[2]), None)
            future = self._ranges.pop(found) if found else None
        return (found[1], future.result()) if found and future else None

    def close(self) -> None:
        """Forget what was expected and never read."""
        with self._lock:
            for future in self._ranges.values():
                future.cancel()
            self._ranges.clear()


class RemoteFile(io.RawIOBase):
    """An object, read by ranges; it holds one block of it in memory.

    Args:
        path: the object.
        ahead: where what is read may be on its way.

    Raises:
        FileNotFoundError: there is no such object.
        StorageError: it cannot be read; so do the methods.
    """

    def __init__(self, path: Path, ahead: Ahead | None = None) -> None:
        self._path, self._ahead = path, ahead
        self.name = str(path)
        self._size, self._version = remote.describe(path)
        self._at = 0
        self._start, self._block = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def size(self) -> int:
        """Bytes of the object."""
        return self._size

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self.read(len(buffer))
        memoryview(buffer).cast("B")[: len(content)] = content
        return len(content)

    def read(self, count: int | None = -1) -> bytes:
        stop = self._size if count is None or count < 0 else min(self._at + count, self._size)
        if stop <= self._at:
            return b""
        content = self._range(self._at, stop)
        self._at = stop
        return content

    def _range(self, start: int, stop: int) -> bytes:
        if not self._start <= start <= stop <= self._start + len(self._block):
            if start >= self._size - TAIL_BYTES:
                first = max(0, self._size - TAIL_BYTES)
                return self._tail(first)[start - first : stop - first]
            found = self._ahead.take(self._path, start, stop) if self._ahead else None
            if found is None:
                block = remote.read_bytes(self._path, start, min(max(stop, start + BLOCK_BYTES), self._size))
                found = start, block
            self._start, self._block = found
        return self._block[start - self._start : stop - self._start]

    def _tail(self, first: int) -> bytes:
        key = str(self._path), self._version
        with _lock:
            if key in _tails:
                _tails.move_to_end(key)
                return _tails[key]
        content = remote.read_bytes(self._path, first, self._size)
        with _lock:
            _tails[key] = content
            while len(_tails) > TAILS:
                _tails.popitem(last=False)
        return content
