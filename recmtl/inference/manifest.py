"""Which files an export has, and their digests: what is damaged or was added is found before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from recmtl.errors import UserError
from recmtl.inference.signature import MANIFEST
from recmtl.runtime.storage import list_files, local_path, open_read, read_text, write_whole

FORMAT = 1
BLOCK = 2**22
MEND = "export the run again"


def write_manifest(folder: Path) -> None:
    """Describe all files of a folder. It is the last file written."""
    files = list_files(folder)
    digests = dict(zip((path.relative_to(folder).as_posix() for path in files), _digests(files), strict=True))
    write_whole(folder / MANIFEST, _text(digests))


def read_manifest(folder: Path, mend: str = MEND) -> dict[str, str]:
    """The digest of every file of an export but the manifest, by its name in the folder.

    Args:
        folder: of the export.
        mend: what to do about a damaged file, for the message.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        text = read_text(path)
        found = json.loads(text)
        digests: dict[str, str] = found["files"]
        if found["format"] != FORMAT:
            raise UserError(f"{path}: written by another version of recmtl; {mend}")
        if _text(digests) != text:
            raise ValueError("its own digest differs")
        return digests
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); {folder} is no export, or not a whole one"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); {mend}") from None


def check_manifest(folder: Path, mend: str = MEND) -> str:
    """Check every byte of an export.

    Returns:
        The export's version: 12 hexadecimal digits that are the same for the same files.

    Raises:
        UserError: a file is missing, damaged or unknown; names it.
    """
    digests = read_manifest(folder, mend)
    there = {file.relative_to(folder).as_posix() for file in list_files(folder)} - {MANIFEST}
    if missing := sorted(digests.keys() - there):
        raise UserError(f"{folder / missing[0]}: missing; {mend}")
    if unknown := sorted(there - digests.keys()):
        raise UserError(f"{folder / unknown[0]}: not a file of this export; remove it")
    files = [folder / name for name in digests]
    try:
        for file, wanted, digest in zip(files, digests.values(), _digests(files), strict=True):
            if wanted != digest:
                raise UserError(f"{file}: damaged (its digest differs); {mend}")
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    return version_of(digests)


def version_of(digests: dict[str, str]) -> str:
    """12 hexadecimal digits that tell one export from another."""
    return hashlib.sha256(_text(digests).encode()).hexdigest()[:12]


def _text(digests: dict[str, str]) -> str:
    """The manifest, with a digest of itself: a changed byte in it is told from one in a file."""
    own = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return json.dumps({"format": FORMAT, "files": digests, "sha256": own}, indent=2) + "\n"


def _digests(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_digest, files))


def _digest(path: Path) -> str:
    """SHA-256 of a file; hashing lets other threads run."""
    digest = hashlib.sha256()
    with open_read(local_path(path)) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
