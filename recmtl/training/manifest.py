"""``manifest.json``: size and checksum of every file of a checkpoint, by which damage is found before it is loaded."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from recmtl.runtime.storage import file_size, open_read, read_json

MANIFEST = "manifest.json"
CHUNK_BYTES = 2**24

Entries = dict[str, dict[str, int]]
"""{file name: {"bytes": its size, "crc32": its checksum}}."""


class Checksum:
    """Size and CRC-32 of bytes that come one piece after the other."""

    def __init__(self) -> None:
        self._size = self._crc32 = 0

    def add(self, content: bytes | memoryview) -> None:
        """Take in what comes next."""
        self._size, self._crc32 = self._size + len(content), zlib.crc32(content, self._crc32)

    def entry(self) -> dict[str, int]:
        """What a manifest says of all of them."""
        return {"bytes": self._size, "crc32": self._crc32}


def entry(path: Path) -> dict[str, int]:
    """Size and CRC-32 of a file."""
    checksum = Checksum()
    with open_read(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            checksum.add(chunk)
    return checksum.entry()


def find_damage(folder: Path, rank: int = 0, world_size: int = 1) -> str | None:
    """What is wrong with a checkpoint, as far as one rank's share of its files tells.

    Args:
        folder: the checkpoint.
        rank: which share to look at.
        world_size: number of shares.

    Returns:
        One phrase that names the file; None: nothing.
    """
    try:
        entries: Entries = read_json(folder / MANIFEST)
        expected = {name: (value["bytes"], value["crc32"]) for name, value in sorted(entries.items())}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    for name in list(expected)[rank::world_size]:
        damage = _file_damage(folder / name, *expected[name])
        if damage:
            return damage
    return None


def _file_damage(path: Path, size: Any, checksum: Any) -> str | None:
    try:
        if (found := file_size(path)) != size:
            return f"{path.name} has {found:,} bytes, not {size:,}"
        return None if entry(path)["crc32"] == checksum else f"{path.name} is not what was written"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
