"""Files in object stores, by fsspec: what `recmtl.runtime.storage` does with a path that is a `RemotePath`.

An object appears whole when it is written and is never changed; there are no folders but in names, and no renaming.
Every request is tried again where that may help, and what it raises in the end names the URL.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from recmtl.errors import StorageError, UserError
from recmtl.runtime.object_stores import READ_ONLY, attempt, azure_copy, fs_of
from recmtl.runtime.scratch import scratch_folder

THREADS = 8
"""That upload, copy or fetch the files of a folder."""


def check_writable(path: Path) -> None:
    """Raise UserError where nothing can be written."""
    scheme = path.scheme  # type: ignore[attr-defined]
    if scheme in READ_ONLY:
        raise UserError(f"{path}: {scheme}:// is read, not written; name a folder elsewhere")
    if len(path.parts) < 3:
        raise UserError(f"{path}: is a whole bucket; name a folder in it")


def info(path: Path) -> dict[str, Any] | None:
    """What the store says of a file or folder; None: there is none."""
    listed = getattr(path, "listed", None)
    try:
        return listed or attempt(path, lambda: fs_of(path).info(str(path)))
    except FileNotFoundError:
        return None


def is_file(path: Path) -> bool:
    found = info(path)
    return found is not None and found["type"] == "file"


def is_folder(path: Path) -> bool:
    found = info(path)
    return found is not None and found["type"] == "directory"


def exists(path: Path) -> bool:
    return info(path) is not None


def is_link(path: Path) -> bool:
    return False


def real_path(path: Path) -> Path:
    return path


def file_size(path: Path) -> int:
    return describe(path)[0]


def describe(path: Path) -> tuple[int, str]:
    """Bytes of a file, and what changes when it is written again: its digest where the store knows one, else its time.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found = info(path)
    if found is None or found["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    names = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime", "updated", "created")
    version = next((found[name] for name in names if found.get(name)), "")
    return int(found["size"]), f"{found['size']} {version}".replace('"', "")  # adlfs quotes it in listings or not


def read_text(path: Path, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    return read_bytes(path).decode(encoding, errors)


def read_bytes(path: Path, start: int | None = None, stop: int | None = None) -> bytes:
    """Bytes `start` up to `stop` of a file; by default all."""

    def request() -> bytes:
        content: bytes = fs_of(path).cat_file(str(path), start=start, end=stop)
        if start is not None and stop is not None and len(content) != stop - start:
            raise OSError(errno.EIO, f"{len(content)} of {stop - start} bytes came; the file was cut short")
        return content

    return attempt(path, request)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    _write(path, lambda: fs_of(path).pipe_file(str(path), content))


def _write(path: Path, request: Callable[[], Any]) -> None:
    """Make a request that writes a file.

    Raises:
        StorageError: it failed for good; where something is not found, that is the bucket, as there are no folders.
    """
    check_writable(path)
    try:
        attempt(path, request)
    except FileNotFoundError:
        name = path.parts[1].partition("@")[0]
        raise StorageError(path, f"there is no bucket or container {name}; make it first") from None


def create(path: Path, content: bytes) -> bool:
    """Write a file where there is none; whether it was this call that did. `content` must be no other caller's."""
    try:
        _write(path, lambda: fs_of(path).pipe_file(str(path), content, mode="create"))
        return True
    except (OSError, StorageError):
        # Stores have errors of their own for it; and a try whose answer was lost is refused the second time.
        with suppress(FileNotFoundError):
            return read_bytes(path) == content
        raise


def modified(path: Path) -> datetime:
    """When a file was written, by the store's clock."""
    return attempt(path, lambda: fs_of(path).modified(str(path)))


def write_whole(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def upload(source: Path, target: Path) -> None:
    """Write a file of this machine to an object."""
    _write(target, lambda: fs_of(target).put_file(str(source), str(target)))


class Outgoing(io.BufferedWriter):
    """A file of this machine that becomes an object when it is closed, or whenever `publish` is called.

    Where it is left by an error, nothing becomes of it.
    """

    def __init__(self, path: Path) -> None:
        self._target = path
        handle, self._name = tempfile.mkstemp(dir=scratch_folder())
        super().__init__(io.FileIO(handle, "wb"))

    def publish(self) -> None:
        """Write the object as the file is now."""
        self.flush()
        upload(Path(self._name), self._target)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.publish()
        finally:
            self.discard()

    def discard(self) -> None:
        """Close the file without the object."""
        super().close()
        Path(self._name).unlink()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def open_write(path: Path) -> IO[bytes]:
    check_writable(path)
    return Outgoing(path)


def open_append(path: Path) -> IO[str]:
    check_writable(path)
    try:
        before = read_bytes(path)
    except FileNotFoundError:
        before = b""
    file = Outgoing(path)
    file.write(before)
    return io.TextIOWrapper(file, encoding="utf-8")


def list_folder(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in a folder; each entry remembers what the listing said of it."""
    fs = fs_of(folder)
    base = fs._strip_protocol(str(folder))
    try:
        found = attempt(folder, lambda: fs.ls(str(folder), detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return []
    entries = []
    for entry in found:
        name = str(entry["name"]).rstrip("/")
        if name == base.rstrip("/") or not fnmatchcase(name.rsplit("/", 1)[-1], pattern):
            continue  # the folder's own marker, or a file of this name
        path = folder / name.rsplit("/", 1)[-1]
        path.listed = entry  # type: ignore[attr-defined]
        entries.append(path)
    return sorted(entries)


def list_files(folder: Path) -> list[Path]:
    fs = fs_of(folder)
    base = fs._strip_protocol(str(folder)).rstrip("/")
    try:
        found = attempt(folder, lambda: fs.find(str(folder), detail=True))
    except FileNotFoundError:
        return []
    files = []
    for name, entry in found.items() if isinstance(found, dict) else ():  # of a file, adlfs gives a list
        if name.startswith(f"{base}/") and not name.endswith("/"):
            path = folder / name[len(base) + 1 :]
            path.listed = entry
            files.append(path)
    return sorted(files)


def make_folder(folder: Path) -> list[Path]:
    """Nothing to make: a folder is there when a file is."""
    check_writable(folder)
    return []


def make_afresh(folder: Path) -> None:
    check_writable(folder)
    remove_all(list_files(folder))


def rename(source: Path, target: Path) -> Path:
    """Copy a file or all files of a folder, and remove them where they were; it is not done at once."""
    check_writable(target)
    files = list_files(source) if is_folder(source) else [source]
    if not files or not exists(source):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
    each(lambda path: copy(path, target / path.relative_to(source)), files)
    remove_all(files)
    return target


def copy(source: Path, target: Path) -> None:
    """Copy a file within a store."""
    check_writable(target)
    attempt(target, lambda: fs_of(target).cp_file(str(source), str(target)))
    if target.scheme == "abfs":  # type: ignore[attr-defined]
        while (state := attempt(target, lambda: azure_copy(target))) == "pending":
            time.sleep(0.2)
        if state != "success":
            raise StorageError(target, f"the copy of {source} came to nothing ({state})")


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    check_writable(path)
    with suppress(FileNotFoundError):
        attempt(path, lambda: fs_of(path).rm_file(str(path)))


def remove_all(paths: Sequence[Path]) -> None:
    """Remove files, those that are there."""
    each(remove, paths)


def remove_folder(folder: Path, *, ignore_errors: bool = False) -> None:
    with suppress(*((OSError, StorageError) if ignore_errors else ())):
        files = list_files(folder)
        if not files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        remove_all(files)


def remove_empty_folder(folder: Path) -> None:
    """Nothing to remove."""


def sync_folder(folder: Path) -> None:
    """Nothing to do: what is written is there."""


def each(function: Callable[[Path], Any], paths: Iterable[Path]) -> None:
    """Call a function with every path, several at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(function, paths):
            pass
