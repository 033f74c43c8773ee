"""Embedding tables as files: rows in float32, float16 or int8, mapped into memory and shared by processes.

An int8 row is codes · scale + offset, codes 0 … 255 over the row's own range, as in FBGEMM's row-wise quantisation.
Scale and offset are bfloat16, which takes 4 bytes a row: float16 would lose the small rows of large tables, which start
within ±1/√rows, among its smallest numbers. Codes are made after the scale is rounded, so its rounding adds no error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recmtl.errors import UserError
from recmtl.inference.signature import TABLES, StoredTable
from recmtl.runtime.storage import local_path

DTYPES = ("float32", "float16", "int8")
BLOCK_ROWS = 2**16
"""Rows converted at a time."""


def table_files(key: str, dtype: str) -> tuple[str, ...]:
    """Names of the files of a table."""
    return (f"{key}.npy", f"{key}.scales.npy") if dtype == "int8" else (f"{key}.npy",)


def _layout(rows: int, dim: int, dtype: str) -> list[tuple[np.dtype, tuple[int, int]]]:
    """Type and shape of the array in each file. NumPy has no bfloat16: its bits are there as uint16."""
    if dtype != "int8":
        return [(np.dtype(dtype), (rows, dim))]
    return [(np.dtype(np.uint8), (rows, dim)), (np.dtype(np.uint16), (rows, 2))]


def write_table(source: np.ndarray, folder: Path, key: str, dtype: str) -> tuple[str, ...]:
    """Write a table, block by block; returns the names of its files.

    Args:
        source: float32 or float16 [R, D].
        folder: of the tables.
        key: the table's name.
        dtype: one of `DTYPES`.
    """
    names = table_files(key, dtype)
    rows, dim = source.shape
    files = [
        np.lib.format.open_memmap(local_path(folder / name), "w+", kind, shape)
        for name, (kind, shape) in zip(names, _layout(rows, dim, dtype), strict=True)
    ]
    for start in range(0, rows, BLOCK_ROWS):
        some = slice(start, start + BLOCK_ROWS)
        block = torch.from_numpy(np.asarray(source[some], np.float32))
        parts = quantize(block) if dtype == "int8" else (block.to(getattr(torch, dtype)),)
        for file, part in zip(files, parts, strict=True):
            file[some] = (part.view(torch.uint16) if part.dtype == torch.bfloat16 else part).numpy()
    for file in files:
        file.flush()
    return names


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, uint8 [R, D], and scale and offset, bfloat16 [R, 2], of rows, float32 [R, D].

    offset ≤ min of the row, offset + 255 · scale ≥ its max, code = round((x − offset)/scale): |error| ≤ scale/2.
    """
    low, high = rows.amin(1), rows.amax(1)
    offset = _round(low, up=False)
    scale = _round((high - offset.float()) / 255, up=True)
    divisor = torch.where(scale == 0, 1.0, scale.float())
    codes = ((rows - offset.float()[:, None]) / divisor[:, None]).round().clamp(0, 255)
    return codes.to(torch.uint8), torch.stack([scale, offset], dim=1)


def dequantize(rows: list[Tensor]) -> Tensor:
    """Rows as a table stores them, to float32 [n, D]: of an int8 table code · scale + offset."""
    values = rows[0].float()
    if len(rows) == 1:
        return values
    scale, offset = rows[1].float().unsqueeze(2).unbind(1)
    return values * scale + offset


def _round(values: Tensor, *, up: bool) -> Tensor:
    """To bfloat16, never below the values (or never above)."""
    rounded = values.to(torch.bfloat16)
    beyond = rounded.float() < values if up else rounded.float() > values
    towards = torch.full_like(rounded, torch.inf if up else -torch.inf)
    return torch.where(beyond, torch.nextafter(rounded, towards), rounded)


def open_table(folder: Path, table: StoredTable, dtype: str) -> list[Tensor]:
    """Map a table of an export: its rows, and of an int8 table scale and offset of every row.

    Raises:
        UserError: a file is not what the signature says.
    """
    found = []
    for name, (kind, shape) in zip(table.files, _layout(table.rows, table.dim, dtype), strict=True):
        path = folder / TABLES / name
        try:
            # Copy on write: nobody writes, and PyTorch wants memory that could be written to.
            values = np.load(local_path(path), mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be mapped ({error}); export the run again") from None
        if values.shape != shape or values.dtype != kind:
            raise UserError(f"{path}: {values.dtype} {list(values.shape)}, not {kind} {list(shape)}")
        tensor = torch.from_numpy(values)
        found.append(tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor)
    return found


def iter_rows(table: list[Tensor]) -> Iterator[np.ndarray]:
    """The rows of an opened table as float32 [n, D], block by block."""
    for start in range(0, len(table[0]), BLOCK_ROWS):
        yield dequantize([part[start : start + BLOCK_ROWS] for part in table]).numpy()
