"""What a day did to the embedding tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from recmtl.encoding.generations import Generations
from recmtl.rolling.record import TableCounts
from recmtl.runtime.storage import local_path
from recmtl.schema import ENCODER, VOCABULARIES, Dataset


def count_ids(data: Path, before: Path | None) -> dict[str, TableCounts]:
    """New and retired ids of prepared data, by table. Tables of hashed values have none.

    Args:
        data: the prepared folder.
        before: the one that it was extended from; None: none.

    Raises:
        UserError: a file of `data` is missing or damaged.
    """
    dataset = Dataset.load(data)
    found = {}
    for table in dataset.tables:
        new = retired = 0
        if not table.hashed:
            now = new = _values(data, table.name)
            if before is not None:
                assigned = Generations.load(data / ENCODER, table).assigned
                new = int(np.count_nonzero(assigned == dataset.generation))
                retired = _values(before, table.name) + new - now
        found[table.name] = TableCounts(table.rows, new, retired)
    return found


def _values(data: Path, table: str) -> int:
    """Values that have an id."""
    return int(pq.read_metadata(local_path(data / VOCABULARIES / f"{table}.parquet")).num_rows)
