"""Counts the values of every embedding table in the training rows and numbers those that are frequent enough."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.prepare.duck import arrow_batches
from recmtl.data.prepare.factorized import FactorizedRows
from recmtl.data.recipe import TableSpec
from recmtl.encoding.values import arrow_type
from recmtl.encoding.vocabulary import Hashed, Vocabulary
from recmtl.schema import FIRST, Table

BATCH_ROWS = 2**17


def make_lookup(
    db: duckdb.DuckDBPyConnection,
    table: Table,
    counts: Callable[[TableSpec], Iterable[pa.RecordBatch]],
    spec: TableSpec,
    folder: Path,
) -> tuple[Table, Vocabulary | Hashed]:
    """The table with its size, and what finds the ids of its values.

    Writes ``FOLDER/TABLE.parquet`` with the columns value and id, ordered by id: by falling count, values that are
    equally frequent by value. Frequent values have low ids: near in memory.

    Args:
        db: counts what does not fit into memory.
        table: without its size.
        counts: how often values of a table that is not hashed occur, in columns of `count_schema`; a value may come
            again and again.
        spec: what the recipe says of the table.
        folder: of the vocabularies.
    """
    if spec.hash_rows is not None:
        return replace(table, rows=spec.hash_rows, hashed=True), Hashed(spec.hash_rows)
    path = folder / f"{table.name}.parquet"
    db.register("#counts", pa.RecordBatchReader.from_batches(count_schema(table), counts(spec)))
    limit = "" if spec.max_rows is None else f" limit {spec.max_rows - FIRST}"
    query = (
        'select value from (select value, sum("count") as seen from "#counts" group by value) '
        f"where seen >= {spec.min_count} order by seen desc, value{limit}"
    )
    written = 0
    schema = value_schema(table)
    with pq.ParquetWriter(path, schema) as file:
        for batch in arrow_batches(db, query, BATCH_ROWS):
            values = batch.column(0).cast(schema.field("value").type)
            ids = np.arange(FIRST + written, FIRST + written + batch.num_rows, dtype=np.int32)
            file.write_batch(pa.RecordBatch.from_arrays([values, pa.array(ids)], schema=schema))
            written += batch.num_rows
    db.unregister("#counts")
    vocabulary = Vocabulary.build(path, table.value_type)
    return replace(table, rows=FIRST + written, vocabulary=digest(vocabulary.keys, vocabulary.ids)), vocabulary


def digest(*parts: np.ndarray) -> str:
    """SHA-256 of arrays, the first 32 hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.data)
    return found.hexdigest()[:32]


def value_schema(table: Table) -> pa.Schema:
    """Columns of ``TABLE.parquet``."""
    return pa.schema([("value", arrow_type(table.value_type)), ("id", pa.int32())])


def count_schema(table: Table) -> pa.Schema:
    return pa.schema([("value", arrow_type(table.value_type)), ("count", pa.int64())])


def partial_counts(
    rows: FactorizedRows, splits: np.ndarray, spec: TableSpec, vocab_from: str
) -> Iterator[pa.RecordBatch]:
    """How often each distinct value of a batch occurs in it, batch by batch."""
    schema = count_schema(next(table for table in rows.encoder.tables if table.name == spec.name))
    for batch in rows.batches(spec.name):
        distinct = batch.features.tables[spec.name]
        counts = np.zeros(len(distinct.values), np.int64)
        counted = splits[batch.rows] == 0 if vocab_from == "train" else None
        for kind in rows.encoder.table_kinds:
            name = kind.feature.name
            if name not in batch.features.codes or (spec.count_from and name not in spec.count_from):
                continue
            codes = batch.features.codes[name]
            if counted is not None:
                lengths = batch.features.lengths.get(name)
                codes = codes[counted if lengths is None else np.repeat(counted, lengths)]
            counts += np.bincount(codes[codes >= 0], minlength=len(counts))
        counts[distinct.refused] = 0
        some = np.flatnonzero(counts)
        arrays = [distinct.values.take(pa.array(some)), pa.array(counts[some])]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
