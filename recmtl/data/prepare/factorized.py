"""What a recipe's query yielded, on disk between the two halves of the encoder.

    the query's batches ──factorize──▶ rows.arrow (codes, numbers, labels, hashes) and TABLE.arrow (distinct values)

Batch i of a table's file holds the distinct values of batch i of the rows. A value is looked up once per batch, not
once per row and feature, and a list of ids takes 4 bytes per id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recmtl.data.prepare.partitions import MOST_PARTITIONS, number_of_partitions
from recmtl.data.prepare.stored import BATCH_ROWS, Stored
from recmtl.encoding.encoder import Encoder, Factorized, TableValues
from recmtl.encoding.values import arrow_type
from recmtl.runtime.storage import file_size, make_folder, remove

CODES = pa.large_list(pa.int32())
CODE = "#code "
"""Begins the names of the columns that features become."""
ROWS = "rows.arrow"
SORTED_SHARE = 16
"""At most about one part in so many of the memory is for the rows that are sorted at a time."""
BATCH_BYTES = 16 * 2**20
"""Rows are factorised in batches of about so many bytes, or of `BATCH_ROWS` where that is less."""


@dataclass(frozen=True)
class Batch:
    """Some rows."""

    first_row: int
    features: Factorized
    columns: pa.RecordBatch
    """The columns that are no features."""

    @property
    def rows(self) -> slice:
        """Where they lie among all rows."""
        return slice(self.first_row, self.first_row + self.columns.num_rows)


class FactorizedRows:
    """The rows of a recipe's query.

    Args:
        folder: where the files are; made here.
        encoder: factorises and knows the features; its vocabularies are not needed.
        others: names and types of the columns that are no features.
    """

    def __init__(self, folder: Path, encoder: Encoder, others: pa.Schema) -> None:
        make_folder(folder)
        self.folder, self.encoder, self.others = folder, encoder, others
        fields = [pa.field(_code(k.feature.name), CODES if k.is_list else pa.int32()) for k in encoder.table_kinds]
        fields += [pa.field(_code(k.feature.name), pa.list_(pa.float64(), k.width)) for k in encoder.dense_kinds]
        self.schema = pa.schema([*others, *fields])
        self.rows = 0

    @contextmanager
    def writer(self) -> Iterator[Callable[[pa.RecordBatch], None]]:
        """What takes the query's batches, to be used as a context."""
        layouts = {table.name: _values_schema(table.value_type) for table in self.encoder.tables}
        with ExitStack() as stack:
            rows = stack.enter_context(pa.ipc.new_file(self.folder / ROWS, self.schema))
            tables = {t: stack.enter_context(pa.ipc.new_file(self._path(t), layout)) for t, layout in layouts.items()}

            def write(batch: pa.RecordBatch) -> None:
                columns = {name: batch.column(name) for name in self.encoder.schema.names}
                found = self.encoder.factorize(columns, self.rows)
                others = [batch.column(name) for name in self.others.names]
                rows.write_batch(pa.RecordBatch.from_arrays([*others, *self._stored(found)], schema=self.schema))
                for name, distinct in found.tables.items():
                    arrays = [distinct.values, pa.array(distinct.refused)]
                    tables[name].write_batch(pa.RecordBatch.from_arrays(arrays, schema=layouts[name]))
                self.rows += batch.num_rows

            yield write

    def _stored(self, found: Factorized) -> Iterator[pa.Array]:
        for kind in self.encoder.table_kinds:
            codes = pa.array(found.codes[kind.feature.name])
            if kind.is_list:
                offsets = np.concatenate(([0], np.cumsum(found.lengths[kind.feature.name])))
                codes = pa.LargeListArray.from_arrays(pa.array(offsets), codes)
            yield codes
        for dense in self.encoder.dense_kinds:
            numbers = pa.array(np.ascontiguousarray(found.numbers[dense.feature.name]).reshape(-1))
            yield pa.FixedSizeListArray.from_arrays(numbers, dense.width)

    def stored(self) -> Stored:
        """The columns that are no features, for the engine."""
        return Stored(self.folder / ROWS)

    def batches(self, table: str | None = None) -> Iterator[Batch]:
        """What was written, batch by batch. Each is mapped by itself, so that the memory of those before is free.

        Args:
            table: bring only the features of this table; None: all features.
        """
        kinds = [kind for kind in self.encoder.table_kinds if table in (None, kind.feature.table)]
        values = {str(kind.feature.table): None for kind in kinds}
        files = {name: iter(Stored(self._path(name))) for name in values}
        first_row = 0
        for batch in self.stored():
            found = Factorized({}, {}, {}, {})
            for name, file in files.items():
                distinct = next(file)
                found.tables[name] = TableValues(distinct.column(0), distinct.column(1).to_numpy(zero_copy_only=False))
            for kind in kinds:
                name = kind.feature.name
                column = batch.column(_code(name))
                if kind.is_list:
                    found.lengths[name] = np.diff(column.offsets.to_numpy())
                    column = column.flatten()
                found.codes[name] = column.to_numpy()
            for dense in self.encoder.dense_kinds if table is None else []:
                numbers = batch.column(_code(dense.feature.name)).flatten().to_numpy()
                found.numbers[dense.feature.name] = numbers.reshape(-1, dense.width)
            yield Batch(first_row, found, batch.select(self.others.names))
            first_row += batch.num_rows

    def ranges(self, memory: int) -> int:
        """Into how many ranges of the hash to cut the rows so that one of each split fits a share of the memory."""
        size = file_size(self.folder / ROWS)
        return min(max(number_of_partitions(self.rows, memory), SORTED_SHARE * size // memory), MOST_PARTITIONS)

    def remove(self) -> None:
        """Delete the files."""
        for path in (self.folder / ROWS, *(self._path(table.name) for table in self.encoder.tables)):
            remove(path)

    def _path(self, table: str) -> Path:
        return self.folder / f"values of {table}.arrow"


def even_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches that are as large as `BATCH_ROWS` and `BATCH_BYTES` let them be.

    Batches of few rows of long lists take little memory, batches of many rows repeat few of their distinct values.
    """
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        step = max(1, batch.num_rows * BATCH_BYTES // max(batch.nbytes, BATCH_BYTES))
        for start in range(0, batch.num_rows, step):
            piece = batch.slice(start, step)
            if held and (rows + piece.num_rows > BATCH_ROWS or size + piece.nbytes > BATCH_BYTES):
                yield _joined(held)
                held, rows, size = [], 0, 0
            held.append(piece)
            rows, size = rows + piece.num_rows, size + piece.nbytes
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _code(feature: str) -> str:
    return f"{CODE}{feature}"


def _values_schema(value_type: str) -> pa.Schema:
    return pa.schema([("value", arrow_type(value_type)), ("refused", pa.bool_())])
