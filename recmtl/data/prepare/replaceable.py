"""What ``--overwrite`` may delete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from recmtl.errors import UserError
from recmtl.runtime.storage import is_folder, is_link, list_folder, read_json
from recmtl.schema import ENCODER, FILE_NAME, PENDING, RECIPE, SPLITS, VOCABULARIES


def check_replaceable(folder: Path) -> None:
    """Check that a folder holds prepared data and nothing else.

    Raises:
        UserError: it is none that ``recmtl prepare`` wrote, or something else lies in it.
    """
    try:
        described: object = read_json(folder / FILE_NAME)
    except (OSError, ValueError):
        described = None
    if is_link(folder) or not isinstance(described, dict) or not {"format", "data_fingerprint"} <= described.keys():
        raise UserError(f"{folder}: is no folder that `recmtl prepare` wrote, so --overwrite does not replace it")
    for path in _below(folder):
        place = path.relative_to(folder).as_posix()
        files = rf"{FILE_NAME}|{RECIPE}|({'|'.join(SPLITS)})/part-\d+\.parquet"
        files += rf"|({VOCABULARIES}|{PENDING})/[\w-]+\.parquet"
        files += rf"|{ENCODER}/(encoder\.json|[\w-]+\.(keys|ids|assigned|seen)\.npy)"
        folders = "|".join((*SPLITS, VOCABULARIES, PENDING, ENCODER))
        if is_link(path) or not re.fullmatch(folders if is_folder(path) else files, place):
            raise UserError(f"{path}: is not from `recmtl prepare`; move it away, as --overwrite would delete it")


def _below(folder: Path) -> Iterator[Path]:
    """All that lies in a folder and in those in it, in order."""
    for path in list_folder(folder):
        yield path
        if is_folder(path):
            yield from _below(path)
