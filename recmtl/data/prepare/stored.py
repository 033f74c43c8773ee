"""Rows on disk between two steps: in Arrow files that are mapped into memory, a batch at a time.

They are not compressed: that would cost more time than all else that is done with them. What the operating system still
has in its cache is not read from disk, and what is mapped it takes back when memory is short.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from recmtl.data.prepare.duck import quote, refusal, refused_column

BATCH_ROWS = 2**16
"""Rows of a batch, at most about: few enough that all threads have some to scan."""
CHUNK_ROWS = 2**18
"""Rows dealt into buckets at a time."""


@dataclass(frozen=True)
class Stored:
    """Rows in an Arrow file: every `step`-th batch from the `first`. DuckDB can scan it any number of times."""

    path: Path
    first: int = 0
    step: int = 1

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The batches. Each is mapped by itself, so that the memory of those before is free."""
        with self._open() as file:
            batches = range(self.first, file.num_record_batches, self.step)
        for number in batches:
            with self._open() as file:
                yield file.get_batch(number)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        with self._open() as file:
            return file.schema

    def _open(self) -> pa.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(str(self.path)))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        reader = pa.RecordBatchReader.from_batches(self.schema, iter(self))
        return reader.__arrow_c_stream__(requested_schema)


def overwrite(stored: Stored, column: str, rows: np.ndarray, values: np.ndarray) -> None:
    """Replace the values of a column of 64-bit numbers in some rows, in the file itself: all other bytes stay.

    Args:
        stored: all rows of a file. Nothing may read it meanwhile.
        column: its name.
        rows: their numbers in the file, ascending.
        values: of the column's type.
    """
    raw = np.memmap(stored.path, np.uint8, "r+")
    start = 0
    with pa.ipc.open_file(pa.py_buffer(raw)) as file:
        for number in range(file.num_record_batches):
            array = file.get_batch(number).column(column)
            end = start + len(array)
            first, last = np.searchsorted(rows, (start, end))
            if first < last:
                # Not copied: the file is not compressed, so the values lie in it as they are.
                offset = array.buffers()[1].address - raw.ctypes.data
                raw[offset : offset + 8 * len(array)].view(values.dtype)[rows[first:last] - start] = values[first:last]
            start = end
    raw.flush()


def scatter(batches: pa.RecordBatchReader, buckets: int, path: Path) -> Iterator[int]:
    """Write rows into buckets, whose numbers are in the last column; yields the number of rows written so far.

    In the file the rows of every chunk lie bucket after bucket, and every bucket has a batch, so that a bucket is every
    `buckets`-th batch.
    """
    schema = pa.schema(list(batches.schema)[:-1])
    written = 0
    with pa.ipc.new_file(path, schema) as file:
        for batch in batches:
            bucket = batch.column(batch.num_columns - 1).to_numpy()
            write_scattered(file, pa.RecordBatch.from_arrays(batch.columns[:-1], schema=schema), bucket, buckets)
            written += batch.num_rows
            yield written


def write_scattered(file: pa.ipc.RecordBatchFileWriter, rows: pa.RecordBatch, bucket: np.ndarray, buckets: int) -> None:
    """Write a chunk, whose rows go into the buckets of these numbers [n], bucket after bucket."""
    rows = rows.take(pa.array(np.argsort(bucket, kind="stable")))
    start = 0
    for count in np.bincount(bucket, minlength=buckets).tolist():
        file.write_batch(rows.slice(start, count))
        start += count


def show(db: duckdb.DuckDBPyConnection, stored: Stored | pa.Table, view: str, columns: dict[str, str]) -> None:
    """Let a view of these columns and types show stored rows, or others that come from the engine."""
    name = f"#behind {view}"
    db.register(name, stored)
    values = {column: _value(column, sql_type) for column, sql_type in columns.items()}
    selected = ", ".join(f"{value} as {quote(column)}" for column, value in values.items())
    db.execute(f"create or replace view {view} as select {selected} from {quote(name)}")


def _value(column: str, sql_type: str) -> str:
    """A stored column; one that cannot be read is not stored, and stays what it was."""
    line = refusal(sql_type)
    # In Arrow an enum is text.
    return refused_column(line) if line else f"cast({quote(column)} as {sql_type})"
