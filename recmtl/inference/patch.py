"""A file as a patch of an earlier one: the bytes that are new, and where the others stand in the earlier file.

A patch is a list of operations, int64 [n, 3]: first `fresh` new bytes, then `length` bytes of the earlier file from
`start` on. What finds them knows the formats: rows of arrays, sorted keys, row groups of Parquet. What applies them
knows bytes alone, so that it gives the same file on any machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from recmtl.runtime.storage import file_size, local_path, open_read, open_write

BLOCK_ROWS = 2**16
"""Rows compared at a time."""
FRESH, OPERATIONS = ".fresh", ".operations.npz"
"""What is appended to a file's name for the two files of its patch."""
COLUMNS = ("fresh", "skipped", "length")
"""Arrays of the operations' file: of `start` it has the bytes of the earlier file that lie between two operations, as
these are often equal and small."""


@dataclass(frozen=True)
class Records:
    """An array file of NumPy as records of one size after a header."""

    values: np.ndarray
    """Mapped into memory."""
    header: int
    """Bytes before the first record."""

    @classmethod
    def load(cls, path: Path) -> Records:
        """Map a file. Raises ValueError where it is no array."""
        values = np.load(local_path(path), mmap_mode="r", allow_pickle=False)
        return cls(values, file_size(path) - values.nbytes)

    @property
    def size(self) -> int:
        """Bytes of a record."""
        return self.values.nbytes // max(1, len(self.values))

    def is_like(self, other: Records) -> bool:
        """Whether records of both have one type and shape."""
        return self.values.dtype == other.values.dtype and self.values.shape[1:] == other.values.shape[1:]


def same_rows(new: Records, old: Records) -> np.ndarray:
    """Bool [rows of the new file]: which rows have the bytes that the row of the same number had."""
    both = min(len(new.values), len(old.values))
    same = np.zeros(len(new.values), bool)
    for start in range(0, both, BLOCK_ROWS):
        some = slice(start, min(start + BLOCK_ROWS, both))
        equal = _bytes_of(new.values[some]) == _bytes_of(old.values[some])
        same[some] = equal.all(axis=1)
    return same


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """uint8 [rows, bytes of a row]."""
    return np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)


def same_keys(new: Records, old: Records) -> np.ndarray:
    """int64 [new keys]: where a key stands among the earlier ones; −1: it is new. Keys are sorted and distinct."""
    if not len(old.values):
        return np.full(len(new.values), -1)
    place = np.minimum(np.searchsorted(old.values, new.values), len(old.values) - 1)
    return np.where(old.values[place] == new.values, place, -1)


def record_operations(source: np.ndarray, new: Records, old: Records) -> np.ndarray:
    """The operations that write an array file, its header anew.

    Args:
        source: int64 [new records]: the record of the earlier file with the same bytes; −1: there is none.
        new: the file.
        old: the earlier file.
    """
    known = source >= 0
    goes_on = (known[1:] == known[:-1]) & (~known[1:] | (source[1:] == source[:-1] + 1))
    begins = np.flatnonzero(np.concatenate([[True], ~goes_on])[: len(source)])
    lengths = np.diff(np.append(begins, len(source)))
    copied = known[begins]
    # Runs of new records never follow each other; one belongs to the operation of the run after it.
    before = np.concatenate([[0], np.where(copied, 0, lengths)])[: len(begins)]
    operations = np.stack([before * new.size, source[begins] * new.size + old.header, lengths * new.size], axis=1)
    last = 0 if not len(copied) or copied[-1] else int(lengths[-1]) * new.size
    return np.concatenate([[[new.header, 0, 0]], operations[copied], [[last, 0, 0]]]).astype(np.int64)


def row_group_operations(new: Path, old: Path) -> np.ndarray:
    """The operations that write a Parquet file whose row groups may be those of an earlier one."""
    earlier = {_digest(old, start, length): start for start, length in _row_groups(old)}
    operations, done = [], 0
    for start, length in _row_groups(new):
        if (place := earlier.get(_digest(new, start, length))) is not None:
            operations.append((start - done, place, length))
            done = start + length
    return np.array([*operations, (file_size(new) - done, 0, 0)], np.int64)


def _row_groups(path: Path) -> Iterator[tuple[int, int]]:
    """First byte and number of bytes of every row group."""
    found = pq.read_metadata(local_path(path))
    for number in range(found.num_row_groups):
        group = found.row_group(number)
        columns = [group.column(place) for place in range(group.num_columns)]
        pages = [page for column in columns for page in (column.dictionary_page_offset, column.data_page_offset)]
        start = min(page for page in pages if page is not None)
        yield start, sum(column.total_compressed_size for column in columns)


def _digest(path: Path, start: int, length: int) -> bytes:
    with open_read(path) as file:
        file.seek(start)
        return hashlib.sha256(file.read(length)).digest()


def fresh_bytes(operations: np.ndarray) -> int:
    """Bytes that a patch holds beside its operations."""
    return int(operations[:, 0].sum())


def write_patch(new: Path, operations: np.ndarray, patch: Path) -> None:
    """Write ``PATCH.fresh`` and ``PATCH.operations.npz``."""
    fresh, start, length = operations.T
    skipped = start - np.concatenate([[0], (start + length)[:-1]])
    with open_write(patch.with_name(patch.name + OPERATIONS)) as file:
        np.savez_compressed(file, **dict(zip(COLUMNS, (fresh, skipped, length), strict=True)))
    with open_read(new) as source, open_write(patch.with_name(patch.name + FRESH)) as target:
        for count, _, length in operations.tolist():
            target.write(source.read(count))
            source.seek(length, 1)


def apply_patch(old: Path, patch: Path, out: Path) -> None:
    """Write a file from an earlier one and what `write_patch` wrote."""
    with np.load(local_path(patch.with_name(patch.name + OPERATIONS)), allow_pickle=False) as stored:
        fresh, skipped, length = (stored[name] for name in COLUMNS)
    start = np.cumsum(skipped) + np.concatenate([[0], np.cumsum(length)[:-1]])
    earlier = np.memmap(local_path(old), np.uint8, "r").data
    with open_read(patch.with_name(patch.name + FRESH)) as source, open_write(out) as target:
        for count, first, size in zip(fresh.tolist(), start.tolist(), length.tolist(), strict=True):
            target.write(source.read(count))
            target.write(earlier[first : first + size])
