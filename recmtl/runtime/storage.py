"""Where recmtl's files lie: the one place that reads, writes, lists and removes files and folders of the user's.

A path is one of this machine, or a `RemotePath` in an object store (`recmtl.runtime.remote`); `parse_path` makes either
of what a user wrote, and the functions here do the same to both. They raise OSError where the system or the store
refuses, as those of `pathlib` do; `os_errors` makes it the user's. What is temporary, such as the intermediate rows of
``prepare``, lies on this machine's disk (`recmtl.runtime.folders`).
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast

from recmtl.errors import UserError
from recmtl.runtime import remote
from recmtl.runtime.cache import local_copy
from recmtl.runtime.object_stores import RemotePath, parse_url
from recmtl.runtime.ranges import Ahead, RemoteFile

P = ParamSpec("P")
R = TypeVar("R")


def parse_path(text: str) -> Path:
    """The path that a user wrote: of this machine, or a URL such as ``s3://bucket/folder``.

    Raises:
        UserError: there is no such kind of store.
    """
    return parse_url(text) if "://" in text else Path(text)


def _or_remote(of_disk: Callable[P, R]) -> Callable[P, R]:
    """Where the first argument is a remote path, have `recmtl.runtime.remote`'s function of this name called."""
    of_store: Callable[P, R] = getattr(remote, of_disk.__name__)

    @functools.wraps(of_disk)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        return (of_store if isinstance(args[0], RemotePath) else of_disk)(*args, **kwargs)

    return function


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into the user's.

    Raises:
        UserError: names the file, or `path` where the error has none.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from None


@_or_remote
def read_text(path: Path, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a file."""
    return path.read_text(encoding, errors)


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    return json.loads(read_text(path))


@_or_remote
def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, also when the machine loses power."""
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
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


def open_read(path: Path) -> IO[bytes]:
    """A file, to read its bytes."""
    return cast(IO[bytes], RemoteFile(path)) if isinstance(path, RemotePath) else path.open("rb")


@_or_remote
def open_write(path: Path) -> IO[bytes]:
    """A file, emptied or made, to write its bytes; whoever reads it meanwhile sees a part, of a remote one nothing."""
    return path.open("wb")


@_or_remote
def open_append(path: Path) -> IO[str]:
    """A file, made where it is missing, to write text to its end."""
    return path.open("a", encoding="utf-8")


def publish(file: IO[Any]) -> None:
    """Let others see what was written to an open file so far: on a disk that is done, a store gets the file."""
    file.flush()
    if outgoing := _outgoing(file):
        outgoing.publish()


def discard(file: IO[Any]) -> None:
    """Close an open file; where what was written is not seen yet, it never will be."""
    if outgoing := _outgoing(file):
        outgoing.discard()
    else:
        file.close()


def sync(file: IO[bytes]) -> None:
    """Have what was written to an open file on the disk."""
    if not _outgoing(file):
        file.flush()
        os.fsync(file.fileno())


def _outgoing(file: IO[Any]) -> remote.Outgoing | None:
    inner = getattr(file, "buffer", file)
    return inner if isinstance(inner, remote.Outgoing) else None


def local_path(path: Path) -> Path:
    """Where this machine has a file, for libraries that open it by its name or map it into memory; of a remote one it
    has a copy (`recmtl.runtime.cache`).
    """
    return local_copy(path) if isinstance(path, RemotePath) else path


def open_source(path: Path, ahead: Ahead | None = None) -> Any:
    """A file as Arrow takes it, to read parts of it.

    Args:
        path: the file.
        ahead: knows what was fetched of remote files before it is read.
    """
    return RemoteFile(path, ahead) if isinstance(path, RemotePath) else path


def expect(ahead: Ahead, path: Path, start: int, stop: int) -> None:
    """Say that the bytes `start` up to `stop` of a file will be read soon, as one piece: of a remote file they are
    fetched meanwhile.
    """
    if isinstance(path, RemotePath):
        ahead.expect(path, start, stop)


def remote_files(folder: Path) -> Any:
    """The fsspec file system of a remote folder, for libraries that open its files by their URLs; None: it is not
    remote.
    """
    if not isinstance(folder, RemotePath):
        return None
    from recmtl.runtime.url_files import UrlFiles  # not before: it imports fsspec

    return UrlFiles(folder.scheme)


def renames_folders(path: Path) -> bool:
    """Whether a folder there can be given another name, at once; else it is complete when its marker is there."""
    return not isinstance(path, RemotePath)


def copy_file(source: Path, target: Path) -> None:
    """Give `target` the bytes of a file; either may be remote."""
    if not isinstance(target, RemotePath):
        shutil.copyfile(local_path(source), target)
    elif isinstance(source, RemotePath) and (source.scheme, source.account) == (target.scheme, target.account):
        remote.copy(source, target)
    else:
        remote.upload(local_path(source), target)


@_or_remote
def exists(path: Path) -> bool:
    """Whether there is a file or folder."""
    return path.exists()


@_or_remote
def is_file(path: Path) -> bool:
    """Whether there is a file."""
    return path.is_file()


@_or_remote
def is_folder(path: Path) -> bool:
    """Whether there is a folder."""
    return path.is_dir()


@_or_remote
def is_link(path: Path) -> bool:
    """Whether a file or folder is a link to one."""
    return path.is_symlink()


@_or_remote
def real_path(path: Path) -> Path:
    """The absolute path of what links lead to."""
    return Path(os.path.realpath(path))


@_or_remote
def file_size(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


@_or_remote
def list_folder(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in a folder and has a name like `pattern`, in order; nothing where there is no folder."""
    try:
        return sorted(path for path in folder.iterdir() if fnmatchcase(path.name, pattern))
    except (FileNotFoundError, NotADirectoryError):
        return []


@_or_remote
def list_files(folder: Path) -> list[Path]:
    """All files in a folder and those below it, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@_or_remote
def make_folder(folder: Path) -> list[Path]:
    """Make a folder, and those that it lies in, where they are missing; returns those made, the innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


@_or_remote
def make_afresh(folder: Path) -> None:
    """Make an empty folder; what is there already is removed.

    Raises:
        FileExistsError: it cannot be removed.
    """
    remove_folder(folder, ignore_errors=True)
    folder.mkdir(parents=True)


@_or_remote
def rename(source: Path, target: Path) -> Path:
    """Give a file or folder another name on the same disk, at once; returns `target`."""
    return source.rename(target)


def replace_link(link: Path, target: Path) -> None:
    """Have a link lead to `target`, a path relative to the link's folder, at once; it is made where it is missing."""
    unfinished = link.with_name(f".{link.name}.tmp")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target)
    unfinished.replace(link)


@_or_remote
def remove(path: Path) -> None:
    """Remove a file or a link, if it is there."""
    path.unlink(missing_ok=True)


@_or_remote
def remove_folder(folder: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder with all that is in it.

    Args:
        folder: what to remove.
        ignore_errors: leave what cannot be removed, the folder itself if it is not there.
    """
    shutil.rmtree(folder, ignore_errors=ignore_errors)


@_or_remote
def remove_empty_folder(folder: Path) -> None:
    """Remove a folder that has nothing in it."""
    folder.rmdir()


@_or_remote
def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
