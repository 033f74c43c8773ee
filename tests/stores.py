"""Object stores for tests: one in the memory of this process, and ways for it to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from recmtl.runtime import object_stores, remote
from recmtl.runtime.storage import parse_path


def empty_store() -> Path:
    """A folder of a bucket that nobody else uses."""
    return parse_path(f"memory://{uuid4().hex}/folder")


def put(source: Path, target: Path) -> Path:
    """Upload all files of a folder; returns `target`."""
    for path in source.rglob("*"):
        if path.is_file():
            remote.upload(path, target / path.relative_to(source))
    return target


def names(folder: Path) -> list[str]:
    """The names of all files in a folder and those below it."""
    return [str(path.relative_to(folder)) for path in remote.list_files(folder)]


class Failing:
    """A file system some of whose requests fail.

    Args:
        whole: the one that it stands before.
        fails: called with a request's name and path; returns the error to raise, or None.
    """

    def __init__(self, whole: Any, fails: Callable[[str, str], Exception | None]) -> None:
        self._whole, self._fails = whole, fails
        self.requests: list[tuple[str, str]] = []
        """Name and path of each."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._whole, name)
        if name.startswith("_"):
            return method

        def request(path: Any, *args: Any, **kwargs: Any) -> Any:
            where = str(args[0] if name == "put_file" else path)
            self.requests.append((name, where))
            if error := self._fails(name, where):
                raise error
            return method(path, *args, **kwargs)

        return request


@contextmanager
def failing(fails: Callable[[str, str], Exception | None]) -> Iterator[Failing]:
    """The store in memory, some of whose requests fail, and no time between two tries."""
    store = Failing(object_stores.file_system("memory"), fails)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_stores, "file_system", lambda *_: store)
        patch.setattr(object_stores, "DEFAULT_WAITS", (0.0,) * len(object_stores.DEFAULT_WAITS))
        yield store
