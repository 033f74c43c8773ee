"""Numbers rows that are alike in what identifies them, so that every row has a hash of its own.

    stored rows ──hashes, sorted──▶ hashes that more than one row has ──▶ their rows, numbered ──▶ new hashes

Most hashes are one row's alone. Only rows of the others are numbered, so that not all rows need to be sorted.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from recmtl.data.prepare.duck import arrow_batches, quote
from recmtl.data.prepare.examples import HASH, ORDER, ROW, SEGMENT, STORED, hash_of
from recmtl.data.prepare.stored import CHUNK_ROWS, Stored, overwrite
from recmtl.data.recipe import Recipe
from recmtl.runtime.storage import remove

HASHES_SHARE = 8
"""At most this part of the memory is for hashes that are sorted; of more rows they are sorted range by range."""
HASH_NAME = HASH.strip('"')
NUMBERED = '"#numbered"'


def number_rows(db: duckdb.DuckDBPyConnection, recipe: Recipe, stored: Stored, rows: int, memory: int) -> None:
    """Give every row a `HASH` of its own: the n rows of the same one are numbered, and 1 … n − 1 hashed with it.

    Rows are numbered in the order of what the recipe reads. Labels, true probabilities and segments decide last,
    between rows that are alike in all else, so that other labels move nothing else. Rows alike in them, too, are the
    same row.

    Args:
        db: has the view `STORED`.
        recipe: names the columns.
        stored: what `STORED` shows.
        rows: number of rows.
        memory: bytes of the process.
    """
    repeated = stored.path.with_name("repeated")
    if not _store_repeated(stored, rows, memory, repeated):
        remove(repeated)
        return
    db.register("#repeated", Stored(repeated))
    order = ", ".join([ORDER, *map(quote, [*recipe.predicted, *(SEGMENT + name for name in recipe.segments)])])
    db.execute(
        f"create table {NUMBERED} as select {ROW}, {HASH}, "
        f"row_number() over (partition by {HASH} order by {order}) - 1 as number "
        f'from {STORED} where {HASH} in (select {HASH} from "#repeated")'
    )
    query = f"select {ROW}, {hash_of((HASH, 'number'))} from {NUMBERED} where number > 0 order by 1"
    for batch in arrow_batches(db, query, CHUNK_ROWS):
        overwrite(stored, HASH_NAME, batch.column(0).to_numpy(), batch.column(1).to_numpy())
    db.execute(f"drop table {NUMBERED}")
    remove(repeated)


def _store_repeated(stored: Stored, rows: int, memory: int, path: Path) -> int:
    """Write the hashes that more than one row has; return how many they are."""
    ranges = -(-rows * HASHES_SHARE * np.uint64().nbytes // memory)
    found = 0
    with pa.ipc.new_file(path, pa.schema([(HASH_NAME, pa.uint64())])) as file:
        for number in range(ranges):
            hashes = np.concatenate([_of_range(batch.column(HASH_NAME).to_numpy(), number, ranges) for batch in stored])
            hashes.sort()
            repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
            file.write_batch(pa.record_batch([pa.array(repeated)], names=[HASH_NAME]))
            found += len(repeated)
    return found


def _of_range(hashes: np.ndarray, number: int, ranges: int) -> np.ndarray:
    """The hashes in one of `ranges` ranges of the same width."""
    if ranges == 1:
        return hashes
    high = hashes >> np.uint64(32)
    return hashes[(high * np.uint64(ranges)) >> np.uint64(32) == number]
