"""What changed from one export to the next: a folder that makes the next one of the one before.

    EXPORT0 ─┐
             ├─▶ rows of tables and values that are new or changed, other files whole ──▶ DELTA
    EXPORT  ─┘
    EXPORT0, DELTA ──▶ EXPORT, byte for byte

A delta is ``delta.json``, ``whole/``, ``patches/`` (`recmtl.inference.patch`) and a manifest of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recmtl.errors import UserError
from recmtl.inference.manifest import check_manifest, read_manifest, version_of, write_manifest
from recmtl.inference.patch import (
    Records,
    apply_patch,
    fresh_bytes,
    record_operations,
    row_group_operations,
    same_keys,
    same_rows,
    write_patch,
)
from recmtl.inference.signature import DELTA, MANIFEST, TABLES, Signature
from recmtl.runtime.folders import complete_or_absent, folder_size, link_file
from recmtl.runtime.storage import file_size, is_file, is_folder, make_folder, read_json, write_json
from recmtl.schema import ENCODER
from recmtl.typed import from_dict

FORMAT = 1
WHOLE, PATCHES = "whole", "patches"
MEND = "copy the delta again, or make it again"
KEYS, IDS = ".keys.npy", ".ids.npy"
"""How names of a vocabulary's files end: sorted keys, and the id of each."""


@dataclass(frozen=True)
class DeltaFile:
    """How a file of the result comes to be."""

    kept: Literal["parent", "patch", "whole"]
    """It is the parent's, a patch of the parent's, or lies in the delta."""
    sha256: str
    """Of the result."""
    parent: str | None
    """SHA-256 of the parent's file of this name; None: it has none."""


@dataclass(frozen=True)
class TableRows:
    """Of a table of the result."""

    rows: int
    changed: int
    """Rows that the parent lacks or has otherwise."""


@dataclass(frozen=True)
class Delta:
    """The contents of ``delta.json``."""

    parent: str
    """Version of the export that it starts from."""
    result: str
    """Version of the export that it makes."""
    bytes: int
    """Of the result."""
    tables: dict[str, TableRows]
    """By the name of the table's copy in the graph."""
    files: dict[str, DeltaFile]
    """By the name of the file in the result. The manifest of the result is in the delta as well."""

    @classmethod
    def load(cls, folder: Path) -> Delta:
        """Open a delta, every byte of it checked.

        Raises:
            UserError: a file is missing or damaged, or the folder is no delta.
        """
        path = folder / DELTA
        if not is_folder(folder):
            raise UserError(f"{folder}: no such folder; give one that `recmtl export --delta-from` wrote")
        if not is_file(path) and DELTA not in read_manifest(folder, MEND):
            raise UserError(f"{folder}: no delta, but a whole export; it needs nothing applied")
        check_manifest(folder, MEND)
        values: dict[str, Any] = read_json(path)
        if values.pop("format") != FORMAT:
            raise UserError(f"{path}: written by another version of recmtl; make the delta again")
        return from_dict(cls, values, str(path))


def write_delta(parent: Path, export: Path, out: Path) -> Delta:
    """Write what makes an export of another one.

    Args:
        parent: the export that is there.
        export: the one that is wanted.
        out: folder to write into.
    """
    before, after = (read_manifest(folder) for folder in (parent, export))
    tables, files = {}, {}
    for table in Signature.load(export).tables:
        same = np.ones(table.rows, bool)
        for name in table.files:
            pair = _records(parent, export, f"{TABLES}/{name}", before)
            same &= False if pair is None else same_rows(*pair)
        tables[table.key] = TableRows(table.rows, int((~same).sum()))
    for name, digest in after.items():
        kept: Literal["parent", "patch", "whole"] = "parent"
        if before.get(name) != digest:
            operations = _operations(parent, export, name) if name in before else None
            kept = "whole"
            if operations is not None and fresh_bytes(operations) < file_size(export / name):
                kept = "patch"
                make_folder((out / PATCHES / name).parent)
                write_patch(export / name, operations, out / PATCHES / name)
        files[name] = DeltaFile(kept, digest, before.get(name))
    for name in (MANIFEST, *(name for name, file in files.items() if file.kept == "whole")):
        make_folder((out / WHOLE / name).parent)
        link_file(export / name, out / WHOLE / name)
    delta = Delta(version_of(before), version_of(after), folder_size(export), tables, files)
    write_json(out / DELTA, {"format": FORMAT, **asdict(delta)})
    write_manifest(out)
    return delta


def check_parent(parent: Path, dtype: str) -> None:
    """Raise UserError unless an export can be what a delta starts from.

    Args:
        parent: the export.
        dtype: of the tables that the delta is to make.
    """
    if is_file(parent / DELTA):
        raise UserError(f"--delta-from {parent}: a delta; apply it first with `recmtl apply-delta`")
    check_manifest(parent)
    if (found := Signature.load(parent).dtype) != dtype:
        raise UserError(f"--delta-from {parent}: has tables of {found}; add --dtype {found}, or name another export")


def apply_delta(parent: Path, folder: Path, out: Path) -> Delta:
    """Make the export that a delta describes, byte for byte.

    Args:
        parent: the export that the delta starts from.
        folder: of the delta.
        out: folder to write, complete or absent.

    Raises:
        UserError: a file of either is missing or damaged, the parent is another one, or `out` cannot be written.
    """
    delta = Delta.load(folder)
    if not is_folder(parent):
        raise UserError(f"{parent}: no such folder; give the export that {folder} starts from")
    if (found := version_of(read_manifest(parent))) != delta.parent:
        raise UserError(f"{parent}: is version {found}, and {folder} starts from version {delta.parent}; name that one")
    check_manifest(parent)
    with complete_or_absent(out, marker=MANIFEST) as work:
        for name, file in {**delta.files, MANIFEST: DeltaFile("whole", "", None)}.items():
            target = work / "data" / name
            make_folder(target.parent)
            if file.kept == "patch":
                apply_patch(parent / name, folder / PATCHES / name, target)
            else:
                link_file((parent if file.kept == "parent" else folder / WHOLE) / name, target)
        if check_manifest(work / "data", MEND) != delta.result:
            raise UserError(f"{folder}: makes another export than it says; {MEND}")
    return delta


def _operations(parent: Path, export: Path, name: str) -> np.ndarray | None:
    """How to make a file of the parent's; None: there is nothing to gain."""
    new, old = export / name, parent / name
    if name.endswith(".parquet"):
        return row_group_operations(new, old)
    if not name.endswith(".npy"):
        return None
    new_records, old_records = Records.load(new), Records.load(old)
    if not new_records.is_like(old_records):
        return None
    if name.startswith(f"{ENCODER}/") and name.endswith((KEYS, IDS)):
        stem = name.removesuffix(KEYS).removesuffix(IDS)
        source = same_keys(*(Records.load(folder / f"{stem}{KEYS}") for folder in (export, parent)))
        if name.endswith(IDS) and len(old_records.values):
            source = np.where(old_records.values[source] == new_records.values, source, -1)
    else:
        same = same_rows(new_records, old_records)
        source = np.where(same, np.arange(len(same)), -1)
    return record_operations(source, new_records, old_records)


def _records(parent: Path, export: Path, name: str, before: dict[str, str]) -> tuple[Records, Records] | None:
    """An array file of an export and its parent's; None: the parent has none that is like it."""
    if name not in before:
        return None
    new, old = Records.load(export / name), Records.load(parent / name)
    return (new, old) if new.is_like(old) else None
