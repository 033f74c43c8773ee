"""Where recmtl's files lie: the one place that reads, writes, lists and removes files and folders of the user's.

All functions raise OSError where the system refuses, as those of `pathlib` do; `os_errors` makes it the user's. What
other libraries open by themselves has a place of its own: DuckDB and pyarrow the raw files, PyTorch a checkpoint's
tensors, and ``prepare`` its intermediate rows, which lie on this machine's disk (`recmtl.runtime.folders`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from recmtl.errors import UserError


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


def read_text(path: Path, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a file."""
    return path.read_text(encoding, errors)


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    return json.loads(read_text(path))


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
    return path.open("rb")


def open_write(path: Path) -> IO[bytes]:
    """A file, emptied or made, to write its bytes; whoever reads it meanwhile sees a part."""
    return path.open("wb")


def open_append(path: Path) -> IO[str]:
    """A file, made where it is missing, to write text to its end."""
    return path.open("a", encoding="utf-8")


def local_path(path: Path) -> Path:
    """Where this machine has a file, for libraries that open it by its name or map it into memory."""
    return path


def exists(path: Path) -> bool:
    """Whether there is a file or folder."""
    return path.exists()


def is_file(path: Path) -> bool:
    """Whether there is a file."""
    return path.is_file()


def is_folder(path: Path) -> bool:
    """Whether there is a folder."""
    return path.is_dir()


def is_link(path: Path) -> bool:
    """Whether a file or folder is a link to one."""
    return path.is_symlink()


def real_path(path: Path) -> Path:
    """The absolute path of what links lead to."""
    return Path(os.path.realpath(path))


def file_size(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def list_folder(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in a folder and has a name like `pattern`, in order; nothing where there is no folder."""
    try:
        return sorted(path for path in folder.iterdir() if fnmatchcase(path.name, pattern))
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_files(folder: Path) -> list[Path]:
    """All files in a folder and those below it, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)


def make_afresh(folder: Path) -> None:
    """Make an empty folder; what is there already is removed.

    Raises:
        FileExistsError: it cannot be removed.
    """
    remove_folder(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def rename(source: Path, target: Path) -> Path:
    """Give a file or folder another name on the same disk, at once; returns `target`."""
    return source.rename(target)


def replace_link(link: Path, target: Path) -> None:
    """Have a link lead to `target`, a path relative to the link's folder, at once; it is made where it is missing."""
    unfinished = link.with_name(f".{link.name}.tmp")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target)
    unfinished.replace(link)


def remove(path: Path) -> None:
    """Remove a file or a link, if it is there."""
    path.unlink(missing_ok=True)


def remove_folder(folder: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder with all that is in it.

    Args:
        folder: what to remove.
        ignore_errors: leave what cannot be removed, the folder itself if it is not there.
    """
    shutil.rmtree(folder, ignore_errors=ignore_errors)


def remove_empty_folder(folder: Path) -> None:
    """Remove a folder that has nothing in it."""
    folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
