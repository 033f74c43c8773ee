"""``recmtl embeddings``: what a model learned of the values of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.encoding.decode import decode, read_values
from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError, nearest
from recmtl.inference.exported import ExportedModel
from recmtl.inference.signature import StoredTable
from recmtl.inference.tables import iter_rows, open_table
from recmtl.runtime.folders import file_complete_or_absent
from recmtl.runtime.progress import Progress
from recmtl.schema import VOCABULARIES

Copies = list[tuple[StoredTable, Iterator[np.ndarray]]]
"""The copies of a table, with their rows block by block, float32 [n, D]."""


def write_embeddings(copies: Copies, folder: Path, encoder: Encoder, out: Path) -> int:
    """Write the rows of all copies of a table: columns id, value, copy and embedding.

    Id 0 is missing, id 1 unseen or rare; they have no value, nor have the ids of a hashed table.

    Args:
        copies: of one table.
        folder: of the model, with the vocabularies.
        encoder: of the model.
        out: Parquet file to write, complete or absent.

    Returns:
        The number of rows written.

    Raises:
        UserError: it exists, or cannot be written.
    """
    table = next(table for table in encoder.tables if table.name == copies[0][0].table)
    values = None if table.hashed else read_values(folder / VOCABULARIES, table.name)
    layout = pa.schema(
        [
            ("id", pa.int32()),
            ("value", pa.null() if values is None else values.type),
            ("copy", pa.string()),
            ("embedding", pa.list_(pa.float32(), copies[0][0].dim)),
        ]
    )
    total = sum(copy.rows for copy, _ in copies)
    written = 0
    with (
        file_complete_or_absent(out) as path,
        pq.ParquetWriter(path, layout) as file,
        Progress(timed=False) as progress,
        progress.stage("writing embeddings", total) as advance,
    ):
        for copy, blocks in copies:
            row = 0
            for block in blocks:
                ids = np.arange(row, row + len(block), dtype=np.int32)
                columns = [
                    pa.array(ids),
                    pa.nulls(len(ids)) if values is None else decode(values, ids),
                    pa.array([copy.copy]).take(pa.array(np.zeros(len(ids), np.int32))),
                    pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), copy.dim),
                ]
                file.write_batch(pa.RecordBatch.from_arrays(columns, schema=layout))
                row += len(block)
                written += len(block)
                advance(written)
    return written


def export_embeddings(export: Path, table: str, out: Path) -> int:
    """`write_embeddings` of an export, by the name of the table.

    Raises:
        UserError: the export is damaged, or has no such table.
    """
    model = ExportedModel(export)
    copies = copies_of(model.signature.tables, table, str(export))
    dtype = model.signature.dtype
    rows = [(copy, iter_rows(open_table(export, copy, dtype))) for copy in copies]
    return write_embeddings(rows, export, model.encoder, out)


def copies_of(tables: Sequence[StoredTable], table: str, where: str) -> list[StoredTable]:
    """The copies of a table.

    Raises:
        UserError: there is none of this name.
    """
    names = list(dict.fromkeys(copy.table for copy in tables))
    if table not in names:
        raise UserError(f"{where}: no table {table!r}; {nearest(table, names)}")
    return [copy for copy in tables if copy.table == table]
