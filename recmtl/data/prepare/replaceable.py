"""What ``--overwrite`` may delete."""

from __future__ import annotations

import json
import re
from pathlib import Path

from recmtl.errors import UserError
from recmtl.schema import ENCODER, FILE_NAME, RECIPE, SPLITS, VOCABULARIES


def check_replaceable(folder: Path) -> None:
    """Check that a folder holds prepared data and nothing else.

    Raises:
        UserError: it is none that ``recmtl prepare`` wrote, or something else lies in it.
    """
    try:
        described: object = json.loads((folder / FILE_NAME).read_text())
    except (OSError, ValueError):
        described = None
    if folder.is_symlink() or not isinstance(described, dict) or not {"format", "data_fingerprint"} <= described.keys():
        raise UserError(f"{folder}: is no folder that `recmtl prepare` wrote, so --overwrite does not replace it")
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        files = rf"{FILE_NAME}|{RECIPE}|({'|'.join(SPLITS)})/part-\d+\.parquet|{VOCABULARIES}/[\w-]+\.parquet"
        files += rf"|{ENCODER}/(encoder\.json|[\w-]+\.(keys|ids)\.npy)"
        folders = "|".join((*SPLITS, VOCABULARIES, ENCODER))
        if path.is_symlink() or not re.fullmatch(folders if path.is_dir() else files, place):
            raise UserError(f"{path}: is not from `recmtl prepare`; move it away, as --overwrite would delete it")
