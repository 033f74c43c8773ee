"""The files of an object store as DuckDB opens them: by fsspec's interface, to be read only."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fsspec import AbstractFileSystem

from recmtl.runtime import remote
from recmtl.runtime.object_stores import RemotePath, parse_url
from recmtl.runtime.ranges import RemoteFile


class UrlFiles(AbstractFileSystem):
    """Opens URLs of one store; what DuckDB takes for a pattern is a name.

    Args:
        scheme: of the URLs.
    """

    cachable = False

    def __init__(self, scheme: str) -> None:
        super().__init__()
        self.protocol = scheme
        self._paths: dict[str, RemotePath] = {}
        """What was asked for, with what the store said of it: each file is asked for once."""
        self._modified: dict[str, datetime] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def open(self, path: str, mode: str = "rb", **_: Any) -> RemoteFile:
        """A file, to be read."""
        return RemoteFile(self._parse(path))

    def glob(self, path: str, **_: Any) -> list[str]:
        """The URL itself, whose special letters stand in brackets."""
        return [unescape(path)]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, type and size of a file."""
        found = self._parse(path).listed
        if found is None:
            raise FileNotFoundError(path)
        return {**found, "name": path}

    def modified(self, path: str) -> datetime:
        """When a file was written."""
        if path not in self._modified:
            self._modified[path] = remote.modified(self._parse(path))
        return self._modified[path]

    def _parse(self, path: str) -> RemotePath:
        if path not in self._paths:
            found = parse_url(path if "://" in path else f"{self.protocol}://{path}")
            found.listed = remote.info(found)
            self._paths[path] = found
        return self._paths[path]


def unescape(pattern: str) -> str:
    """The name that a pattern stands for whose special letters stand in brackets."""
    for letter in "*?[":
        pattern = pattern.replace(f"[{letter}]", letter)
    return pattern
