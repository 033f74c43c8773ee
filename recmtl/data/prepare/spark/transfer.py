"""Rows and files as bytes, which is all that Spark sees of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa

from recmtl.runtime.storage import list_folder, open_read, open_write

CHUNK_BYTES = 4 * 2**20
"""Of a file, that are one element."""


def to_bytes(rows: pa.RecordBatch | pa.Table) -> bytes:
    """Rows as a stream of Arrow's IPC format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write(rows)
    return sink.getvalue().to_pybytes()


def from_bytes(data: bytes) -> pa.Table:
    """What `to_bytes` was given."""
    with pa.ipc.open_stream(data) as stream:
        return stream.read_all()


def deal(rows: pa.RecordBatch, keys: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """The rows of every key, uint or int [n], that some have."""
    order = np.argsort(keys, kind="stable")
    some, starts = np.unique(keys[order], return_index=True)
    rows = rows.take(pa.array(order))
    for key, start, end in zip(some.tolist(), starts, np.append(starts, len(keys))[1:], strict=True):
        yield key, to_bytes(rows.slice(start, end - start))


def pack(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a folder, piece by piece."""
    for path in list_folder(folder):
        for data in pieces_of(path):
            yield path.name, data


def pieces_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file, piece by piece; of an empty one an empty piece."""
    with open_read(path) as file:
        yield file.read(CHUNK_BYTES)
        while data := file.read(CHUNK_BYTES):
            yield data


def unpack(pieces: Iterable[tuple[str, bytes]], folder: Path) -> None:
    """Write into a folder, file after file, what `pack` gave of another."""
    for name, of_file in groupby(pieces, key=itemgetter(0)):
        with open_write(folder / name) as file:
            for _, data in of_file:
                file.write(data)
