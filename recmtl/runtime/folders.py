"""Folders that are complete or absent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recmtl.errors import UserError
from recmtl.runtime.locks import locked
from recmtl.runtime.remote import each
from recmtl.runtime.storage import (
    copy_file,
    exists,
    file_size,
    is_folder,
    list_files,
    list_folder,
    make_afresh,
    make_folder,
    os_errors,
    remove,
    remove_folder,
    rename,
    renames_folders,
)
from recmtl.runtime.uploads import copy_folder, local_scratch, uploaded_file, uploaded_or_absent

MARKER = "_SUCCESS"
"""Says in an object store that a folder without a main file of its own is complete."""


def link_folder(source: Path, target: Path) -> None:
    """Give `target` the files of a folder that are never written again: as links where the file system has them, so
    that they take no space twice, else as copies. It is complete or absent, in an object store file by file; what is
    there already is replaced.
    """
    if not renames_folders(target):
        each(lambda path: copy_file(path, target / path.name), list_folder(source))
        return
    unfinished = target.with_name(f".{target.name}.tmp")
    make_afresh(unfinished)
    for path in list_folder(source):
        link_file(path, unfinished / path.name)
    remove_folder(target, ignore_errors=True)
    rename(unfinished, target)


def link_file(source: Path, target: Path) -> None:
    """Give a file that is never written again another name: a link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        copy_file(source, target)


@contextmanager
def complete_or_absent(
    out: Path, check_replaceable: Callable[[Path], None] | None = None, *, marker: str = MARKER
) -> Iterator[Path]:
    """A hidden folder beside `out`: its ``data`` becomes `out` if nothing goes wrong, and the rest is removed.

    Where `out` is in an object store, it is a folder of this machine, which is uploaded.

    What a killed process left there is removed first; where it was killed while it replaced `out`, the old `out` comes
    back.

    Args:
        out: folder to write; absent or empty, unless it may be replaced.
        check_replaceable: raises UserError unless `out`, which is not empty, may be replaced. It is asked before the
            work and again before `out` is removed.
        marker: the file that an object store gets last, and without which `out` is not complete there.

    Raises:
        UserError: `out` is not empty, cannot be written, or another process is writing it.
    """
    if not renames_folders(out):
        with uploaded_or_absent(out, check_replaceable, marker) as work:
            yield work
        return
    target = out.absolute()
    work = target.with_name(f".{target.name}.tmp")
    replaced = work / "replaced"

    def check() -> None:
        if not exists(out) or (is_folder(out) and not list_folder(out)):
            return
        if check_replaceable is None:
            raise UserError(f"{out}: exists and is not empty; remove it or name another folder")
        check_replaceable(out)

    try:
        if not exists(replaced):
            check()
        make_folder(work)
        with locked(work / "lock", out):
            try:
                if exists(replaced) and not exists(target):
                    rename(replaced, target)
                check()
                for left in list_folder(work):
                    if left.name != "lock":
                        remove_folder(left)
                make_folder(work / "data")
                yield work
                check()
                if exists(target):
                    rename(target, replaced)
                rename(work / "data", target)
            finally:
                if exists(replaced) and not exists(target):
                    rename(replaced, target)
                remove_folder(work, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from None


@contextmanager
def scratch_folder(beside: Path | None = None) -> Iterator[Path]:
    """A hidden folder with a name of its own, gone afterwards.

    Args:
        beside: a file to be written, in whose folder it lies, if that is on this machine; None: where the system keeps
            what is temporary.
    """
    if beside is not None and not renames_folders(beside):
        with local_scratch() as folder:
            yield folder
        return
    parent = None if beside is None else beside.absolute().parent
    with os_errors(beside or Path(tempfile.gettempdir())):
        if parent is not None:
            make_folder(parent)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".recmtl-") as folder:
            yield Path(folder)


@contextmanager
def file_complete_or_absent(out: Path) -> Iterator[Path]:
    """A hidden file beside `out` that becomes `out` if nothing goes wrong, and is removed otherwise.

    Raises:
        UserError: `out` exists or cannot be written.
    """
    if exists(out):
        raise UserError(f"{out}: exists; remove it or name another file")
    if not renames_folders(out):
        with uploaded_file(out) as unfinished:
            yield unfinished
        return
    unfinished = out.absolute().with_name(f".{out.name}.tmp")
    with os_errors(out):
        try:
            make_folder(unfinished.parent)
            yield unfinished
            rename(unfinished, out)
        finally:
            remove(unfinished)


def is_whole(folder: Path, marker: str) -> bool:
    """Whether there is a folder and, where folders get no other names at once, its marker."""
    return is_folder(folder) if renames_folders(folder) else exists(folder / marker)


def move_folder(source: Path, target: Path, marker: str) -> None:
    """Give a folder another name, under which there is none; where that is not done at once, the files are copied, the
    marker last, before the source loses its marker and the rest.
    """
    if renames_folders(source):
        rename(source, target)
        return
    copy_folder(source, target, marker)
    discard_folder(source, marker)


def discard_folder(folder: Path, marker: str) -> None:
    """Remove a folder of which nobody shall see a part."""
    if not renames_folders(folder):
        remove(folder / marker)
    elif is_folder(folder):
        folder = rename(folder, folder.with_name(f".{folder.name}.gone"))
    remove_folder(folder, ignore_errors=True)


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder and those below it."""
    return sum(file_size(path) for path in list_files(folder))
