"""Cuts a source into parts that a recipe's query sees one after the other: its time is linear, its memory bounded.

A window or a join over all events at once outgrows the memory, and past it costs a multiple. Where a recipe names a
source's `parts_by`, rows that are equal in this column stay together, and that is all the query needs to see at once.

    source ──hash of the column──▶ one Arrow file a part ──▶ the source's view, part after part
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from recmtl.data.duck import arrow_batches, quote
from recmtl.data.recipe import Source

PART_ROWS = 2**20
"""Raw rows of a part, at most about: few enough for the processor's caches."""
ROW_BYTES = 2000
"""Memory of the process for each raw row of a part, and more than it takes: the rest of the memory holds examples."""
MOST_PARTS = 256
"""Of more events the parts are larger: they are all written at once, and every chunk is dealt to all of them."""
CHUNK_ROWS = 2**16
"""Rows dealt at a time."""
PART = '"#part"'


def number_of_parts(rows: int, memory: int) -> int:
    """Parts to cut `rows` into for a process of `memory` bytes."""
    return min(max(1, -(-rows // min(PART_ROWS, memory // ROW_BYTES))), MOST_PARTS)


def cut(db: duckdb.DuckDBPyConnection, source: Source, parts: int, folder: Path) -> Iterator[int]:
    """Deal the rows of a source into files ``0.arrow`` … of a folder; yields the number of rows dealt so far."""
    assert source.parts_by is not None
    key = f"cast(hash({quote(source.parts_by)}) % {parts} as usmallint)"
    # What a log is joined with is smaller: that is what joins should hold in memory, whatever DuckDB guesses.
    db.execute("set disabled_optimizers = 'build_side_probe_side'")
    batches = arrow_batches(db, f"select *, {key} as {PART} from {quote(source.name)}", CHUNK_ROWS)
    layout = pa.schema(list(batches.schema)[:-1])
    dealt = 0
    with ExitStack() as files:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        writers = [
            files.enter_context(pa.ipc.new_file(_path(folder, number), layout, options=options))
            for number in range(parts)
        ]
        for batch in batches:
            part = batch.column(batch.num_columns - 1).to_numpy()
            rows = pa.RecordBatch.from_arrays(batch.columns[:-1], schema=layout)
            rows = rows.take(pa.array(np.argsort(part, kind="stable")))
            start = 0
            for writer, count in zip(writers, np.bincount(part, minlength=parts).tolist(), strict=True):
                if count:
                    writer.write_batch(rows.slice(start, count))
                start += count
            dealt += start
            yield dealt
    db.execute("reset disabled_optimizers")


def shown(db: duckdb.DuckDBPyConnection, source: Source, parts: int, folder: Path) -> Iterator[int]:
    """Make the source's view show one part after the other; yields their numbers. Files go as they are read."""
    columns = db.execute(f"describe {quote(source.name)}").fetchall()
    # Arrow does not know all of DuckDB's types.
    cast = ", ".join(f"cast({quote(name)} as {kind}) as {quote(name)}" for name, kind, *_ in columns)
    for part in range(parts):
        path = _path(folder, part)
        with pa.ipc.open_file(path) as file:
            db.register(PART.strip('"'), file.read_all())
        path.unlink()
        if part == 0:
            db.execute(f"create or replace view {quote(source.name)} as select {cast} from {PART}")
        yield part
        db.unregister(PART.strip('"'))


def _path(folder: Path, part: int) -> Path:
    return folder / f"{part}.arrow"
