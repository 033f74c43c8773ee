"""Folders of an object store that are complete or absent.

They are made in a folder of this machine and uploaded; the marker, a file that says that the others are there, comes
last. Who is uploading holds a lease, and has written down which files it writes, so that what is left of an upload that
was killed is told from other files and removed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recmtl.errors import UserError
from recmtl.runtime import remote
from recmtl.runtime.leases import leased
from recmtl.runtime.scratch import scratch_folder


@contextmanager
def uploaded_or_absent(out: Path, check_replaceable: Callable[[Path], None] | None, marker: str) -> Iterator[Path]:
    """A folder of this machine whose ``data`` becomes `out`; as `recmtl.runtime.folders.complete_or_absent`."""
    remote.check_writable(out)
    beside = out.with_name(f".{out.name}.tmp")
    under_way = beside / "under-way.json"

    def check() -> None:
        if not remote.list_files(out) and not remote.is_file(out):
            return
        if check_replaceable is None:
            raise UserError(f"{out}: exists and is not empty; remove it or name another folder")
        check_replaceable(out)

    with leased(beside / "lock", out) as check_held:
        _remove_rest(out, under_way)
        check()
        with local_scratch() as work:
            data = work / "data"
            data.mkdir()
            yield work
            check()
            check_held()
            _replace(data, out, marker, under_way, check_held)


@contextmanager
def uploaded_file(out: Path) -> Iterator[Path]:
    """A file of this machine that becomes `out` if nothing goes wrong."""
    remote.check_writable(out)
    with local_scratch() as folder:
        yield folder / out.name
        remote.upload(folder / out.name, out)


@contextmanager
def local_scratch() -> Iterator[Path]:
    """A folder of this machine, gone afterwards, for what becomes remote files."""
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        yield Path(folder)


def copy_folder(source: Path, target: Path, marker: str) -> None:
    """Copy all files of a folder within a store, the marker last."""
    names = [path.relative_to(source) for path in remote.list_files(source)]
    remote.each(lambda name: remote.copy(source / name, target / name), [n for n in names if str(n) != marker])
    if remote.exists(source / marker):
        remote.copy(source / marker, target / marker)


def _replace(data: Path, out: Path, marker: str, under_way: Path, check_held: Callable[[], None]) -> None:
    if not (data / marker).exists():
        (data / marker).touch()
    new = sorted(path for path in data.rglob("*") if path.is_file())
    old = remote.list_files(out)
    names = {str(path.relative_to(data)) for path in new} | {str(path.relative_to(out)) for path in old}
    remote.write_whole(under_way, json.dumps(sorted(names)))
    remote.remove(out / marker)
    remote.remove_all(old)
    remote.each(lambda path: remote.upload(path, out / path.relative_to(data)), [p for p in new if p != data / marker])
    check_held()
    remote.upload(data / marker, out / marker)
    remote.remove(under_way)


def _remove_rest(out: Path, under_way: Path) -> None:
    """Remove what an upload that was killed has written."""
    try:
        names = json.loads(remote.read_text(under_way))
    except FileNotFoundError:
        return
    remote.remove_all([out / name for name in names])
    remote.remove(under_way)
