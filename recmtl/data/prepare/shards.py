"""Writes the columns of the prepared files, in the layout that the reader is tuned for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.prepare.content import ContentDigests
from recmtl.features import make_kind
from recmtl.runtime.storage import make_folder
from recmtl.schema import (
    FILE_ROW_GROUPS,
    GROUP_COLUMN,
    ROW_GROUP_ROWS,
    SPLITS,
    WEIGHT_COLUMN,
    Dataset,
    label_column,
    label_type,
    oracle_column,
    segment_column,
    weight_column,
)

SHARD_ROWS = FILE_ROW_GROUPS * ROW_GROUP_ROWS


def schema(dataset: Dataset) -> pa.Schema:
    """Names and types of the columns.

    Only labels that some rows lack are nullable, and segments, which the reader leaves alone: of all other columns it
    skips the bookkeeping of nulls.
    """
    columns = [(feature.name, make_kind(feature).prepared_type) for feature in dataset.features]
    for task in dataset.tasks:
        columns.append((label_column(task.name), pa.type_for_alias(label_type(task))))
        if task.oracle:
            columns.append((oracle_column(task.name), pa.float32()))
        if task.row_weight:
            columns.append((weight_column(task.name), pa.float32()))
    if dataset.row_weight:
        columns.append((WEIGHT_COLUMN, pa.float32()))
    if dataset.group:
        columns.append((GROUP_COLUMN, pa.int64()))
    columns += [(segment_column(name), pa.string()) for name in dataset.segments]
    nullable = {label_column(task.name) for task in dataset.tasks if dataset.is_partial(task)}
    nullable |= {segment_column(name) for name in dataset.segments}
    return pa.schema([pa.field(name, arrow_type, nullable=name in nullable) for name, arrow_type in columns])


def write_shards(
    batches: Iterable[pa.RecordBatch], dataset: Dataset, folder: Path, content: ContentDigests
) -> Iterator[int]:
    """Write rows that come split after split; yields the number of rows written so far, again and again.

    Args:
        batches: the rows, in the columns of `schema`.
        dataset: says how many rows each split has.
        folder: the prepared folder.
        content: takes in what is written.
    """
    layout = schema(dataset)
    rows = _Rows(batches, layout)
    written = 0
    for split in SPLITS:
        make_folder(folder / split)
        left = dataset.rows[split]
        for number in range(-(-left // SHARD_ROWS)):
            with shard_writer(folder / shard_name(split, number), layout) as file:
                shard_end = max(left - SHARD_ROWS, 0)
                while left > shard_end:
                    chunk = rows.take(min(ROW_GROUP_ROWS, left - shard_end))
                    file.write_table(chunk)
                    content.add(split, chunk)
                    left -= chunk.num_rows
                    written += chunk.num_rows
                    yield written


def shard_name(split: str, number: int) -> str:
    """Where in the prepared folder a shard lies."""
    return f"{split}/part-{number:05d}.parquet"


def shard_writer(path: Path, layout: pa.Schema) -> pq.ParquetWriter:
    """What takes the rows of a shard, a row group at a time."""
    # Plain and uncompressed: decoding is a copy, several times faster than any codec on one core.
    return pq.ParquetWriter(path, layout, compression="none", use_dictionary=False)


class _Rows:
    """Takes exact numbers of rows from batches of any size."""

    def __init__(self, batches: Iterable[pa.RecordBatch], layout: pa.Schema) -> None:
        self.batches, self.layout = iter(batches), layout
        self.pending: list[pa.RecordBatch] = []
        self.count = 0

    def take(self, rows: int) -> pa.Table:
        while self.count < rows:
            batch = self._conform(next(self.batches))
            self.pending.append(batch)
            self.count += batch.num_rows
        table = pa.Table.from_batches(self.pending, self.layout)
        self.pending = table.slice(rows).to_batches()
        self.count -= rows
        return table.slice(0, rows)

    def _conform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = [
            column if column.type == field.type else column.cast(field.type)
            for column, field in zip(batch.columns, self.layout, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.layout)
