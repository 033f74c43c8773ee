"""From ids back to the values that they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.schema import FIRST


def decode(vocabularies: Path, table: str, ids: np.ndarray) -> pa.Array:
    """The values of ids.

    Args:
        vocabularies: the folder with ``TABLE.parquet``, whose rows are in the order of the ids.
        table: a table that is not hashed.
        ids: integers [n].

    Returns:
        [n] of the type of the table's values; null for the ids of missing and of unseen values, which stand for none.
    """
    values = pq.read_table(vocabularies / f"{table}.parquet", columns=["value"])["value"].combine_chunks()
    known = ids >= FIRST
    return values.take(pa.array(np.where(known, ids - FIRST, 0), mask=~known))
