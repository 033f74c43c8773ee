"""What a day did to the embedding tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from recmtl.rolling.record import TableCounts
from recmtl.runtime.storage import local_path
from recmtl.schema import VOCABULARIES, Dataset, Table


def count_ids(data: Path, dataset: Dataset) -> dict[str, TableCounts]:
    """Rows, new and retired ids of prepared data, by table; of data that extend no others all ids are new.

    Args:
        data: the prepared folder.
        dataset: what it holds.
    """
    return {table.name: _count(data, dataset, table) for table in dataset.tables}


def _count(data: Path, dataset: Dataset, table: Table) -> TableCounts:
    if table.hashed:  # no value has an id of its own
        return TableCounts(table.rows, 0, 0)
    if growth := dataset.growth.get(table.name):
        return TableCounts(table.rows, growth.new, growth.retired)
    values = pq.read_metadata(local_path(data / VOCABULARIES / f"{table.name}.parquet")).num_rows
    return TableCounts(table.rows, int(values), 0)
