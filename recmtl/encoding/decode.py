"""From ids back to the values that they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.errors import UserError
from recmtl.runtime.storage import local_path
from recmtl.schema import FIRST


def read_values(vocabularies: Path, table: str) -> pa.Array:
    """The values of a table that is not hashed, by their ids, from `FIRST` on; null for an id that has none any more.

    Args:
        vocabularies: the folder with ``TABLE.parquet``.
        table: its name.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = vocabularies / f"{table}.parquet"
    try:
        found = pq.read_table(local_path(path)).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); prepare the data again") from None
    values, ids = found["value"].combine_chunks(), found["id"].to_numpy()
    if not len(ids) or ids[-1] == FIRST + len(ids) - 1:
        return values
    places = np.full(ids[-1] - FIRST + 1, -1)
    places[ids - FIRST] = np.arange(len(ids))
    return values.take(pa.array(places, mask=places < 0))


def decode(values: pa.Array, ids: np.ndarray) -> pa.Array:
    """The values of ids.

    Args:
        values: as `read_values` gives them.
        ids: integers [n].

    Returns:
        [n] of the type of the table's values; null for the ids of missing and of unseen values, which stand for none.
    """
    known = ids >= FIRST
    return values.take(pa.array(np.where(known, ids - FIRST, 0), mask=~known))
