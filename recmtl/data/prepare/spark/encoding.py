"""What runs in Spark's tasks on stored rows, once their splits are known: statistics, counts, ids, shards."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.prepare.buckets import HASH
from recmtl.data.prepare.content import ContentDigests
from recmtl.data.prepare.duck import arrow_batches
from recmtl.data.prepare.encode import FeatureStatistics, Shares, encode_into_buckets
from recmtl.data.prepare.shards import schema, shard_name, shard_writer
from recmtl.data.prepare.spark.plan import Plan
from recmtl.data.prepare.spark.shards import BUCKETS, ShardMap, count_hashes
from recmtl.data.prepare.spark.tasks import Element, Summary, open_database, open_rows, show_splits, task
from recmtl.data.prepare.spark.transfer import deal, from_bytes, pieces_of
from recmtl.data.prepare.stored import CHUNK_ROWS
from recmtl.data.prepare.tasks import TaskStatistics
from recmtl.data.prepare.vocabularies import count_schema, partial_counts
from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError
from recmtl.runtime.storage import is_folder, open_read, remove, rename
from recmtl.schema import ROW_GROUP_ROWS, SPLITS, Dataset

STATISTICS = 0
"""Number of the partition that all statistics go to."""


@dataclass
class Statistics:
    """What rows say once their splits are known."""

    tasks: TaskStatistics
    features: FeatureStatistics
    hashes: np.ndarray
    """Of the rows that are kept, as `count_hashes` gives them."""

    def merge(self, other: Statistics) -> None:
        """Add what other rows say."""
        self.tasks.merge(other.tasks)
        self.features.merge(other.features)
        self.hashes += other.hashes


@dataclass(frozen=True)
class Sparse:
    """An array of which most is 0, on its way."""

    places: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray) -> Sparse:
        """From the array."""
        places = np.flatnonzero(counts)
        return cls(places, counts.reshape(-1)[places])

    def dense(self) -> np.ndarray:
        """The array, int64 [splits, buckets]."""
        counts = np.zeros(len(SPLITS) * BUCKETS, np.int64)
        counts[self.places] = self.values
        return counts.reshape(len(SPLITS), BUCKETS)


@task
def survey(
    plan: Plan,
    folder: Path,
    elements: Iterable[Summary | tuple[str, bytes]],
    sums: dict[int, int],
    rule: str,
    parts: int,
) -> Iterator[Element]:
    """Statistics of a range, for partition `STATISTICS`, and how often each value of every table occurs in it, for
    partitions 1 … `parts` by their hash.
    """
    rows = open_rows(plan, folder, elements, sums)
    if rows is None:
        return
    with closing(open_database(plan, folder)) as db:
        splits, hashes = show_splits(plan, db, rows, rule)
        tasks, features = TaskStatistics(plan.recipe), FeatureStatistics(plan.encoder)
        histogram = np.zeros((len(SPLITS), BUCKETS), np.int64)
        for batch in rows.batches():
            split, keys = splits[batch.rows], hashes[batch.rows]
            kept = tasks.add(batch.columns, split, keys)
            features.add(batch, split)
            histogram += count_hashes(split[kept], keys[kept])
        yield STATISTICS, (tasks, features, Sparse.of(histogram))
        for spec in plan.recipe.tables:
            if spec.hash_rows is None:
                batches = partial_counts(rows, splits, spec, plan.recipe.split.vocab_from)
                for part, data in _count(db, plan.encoder, spec.name, batches, parts):
                    yield 1 + part, (spec.name, data)


def _count(
    db: duckdb.DuckDBPyConnection, encoder: Encoder, table: str, batches: Iterable[pa.RecordBatch], parts: int
) -> Iterator[tuple[int, bytes]]:
    """Counts of the values of a table, each once, by the hash of the value."""
    layout = count_schema(next(known for known in encoder.tables if known.name == table))
    db.register("#counts", pa.RecordBatchReader.from_batches(layout, batches))
    query = (
        f'select value, cast(sum("count") as bigint) as "count", cast(hash(value) % {parts} as uinteger) '
        'from "#counts" group by value'
    )
    for batch in arrow_batches(db, query, CHUNK_ROWS):
        columns = [column.cast(field.type) for column, field in zip(batch.columns[:-1], layout, strict=True)]
        yield from deal(pa.RecordBatch.from_arrays(columns, schema=layout), batch.columns[-1].to_numpy())
    db.unregister("#counts")


@task
def merge(
    plan: Plan, folder: Path, number: int, elements: Iterable[Element]
) -> Iterator[Statistics | tuple[str, bytes]]:
    """The statistics of all ranges, or the sums of a part of the counts, by table."""
    if number == STATISTICS:
        total = None
        for _, (tasks, features, histogram) in elements:
            found = Statistics(tasks, features, histogram.dense())
            if total is None:
                total = found
            else:
                total.merge(found)
        if total is not None:
            yield total
        return
    told: dict[str, list[pa.RecordBatch]] = defaultdict(list)
    for _, (table, data) in elements:
        told[table] += from_bytes(data).to_batches()
    with closing(open_database(plan, folder)) as db:
        for table, batches in told.items():
            for _, data in _count(db, plan.encoder, table, batches, 1):
                yield table, data


@dataclass(frozen=True)
class Writing:
    """What is written, and where."""

    rule: str
    """SQL of the split of a row."""
    dataset: Dataset
    shards: ShardMap
    folder: Path
    """The prepared folder."""
    attempts: Path | None
    """Folder for files that are not whole yet, on the same disk; None: executors do not share it, and files go to the
    driver."""


@task
def encode(
    plan: Plan,
    folder: Path,
    elements: Iterable[Summary | tuple[str, bytes]],
    sums: dict[int, int],
    writing: Writing,
) -> Iterator[Element]:
    """The encoded rows of a range by the number of their shard, and shares of values after the last."""
    from pyspark import SparkFiles

    rows = open_rows(plan, folder, elements, sums)
    if rows is None:
        return
    with closing(open_database(plan, folder)) as db:
        splits, hashes = show_splits(plan, db, rows, writing.rule)
    encoder = Encoder.load(Path(SparkFiles.getRootDirectory()))
    shares, dealt = Shares(encoder.features), _Dealt(writing.shards)
    for _ in encode_into_buckets(rows, encoder, plan.recipe, writing.dataset, shares, splits, hashes, dealt):
        yield from dealt.take()
    yield len(writing.shards.shards), shares


class _Dealt:
    """Takes encoded rows, and gives them by shard."""

    def __init__(self, shards: ShardMap) -> None:
        self._shards = shards
        self._rows: list[Element] = []

    def write(self, rows: pa.RecordBatch, splits: np.ndarray, hashes: np.ndarray) -> None:
        """See `Buckets`."""
        columns = [*rows.columns, pa.array(hashes)]
        layout = rows.schema.append(pa.field(HASH, pa.uint64()))
        self._rows += self._shards.deal(pa.RecordBatch.from_arrays(columns, schema=layout), splits, hashes)

    def take(self) -> list[Element]:
        """What came since the last time."""
        taken, self._rows = self._rows, []
        return taken


@task
def write_shard(
    plan: Plan, folder: Path, number: int, elements: Iterable[Element], writing: Writing
) -> Iterator[Shares | tuple[str, bytes]]:
    """Write a shard, or give its file piece by piece. The partition after the last shard gives the shares of all ranges
    instead.

    Raises:
        UserError: this executor does not see the folder.
    """
    if number == len(writing.shards.shards):
        total = None
        for _, shares in elements:
            if total is None:
                total = shares
            else:
                total.merge(shares)
        if total is not None:
            yield total
        return
    from pyspark import TaskContext

    shard, layout = writing.shards.shards[number], schema(writing.dataset)
    rows = pa.concat_tables(from_bytes(data) for _, data in elements).combine_chunks()
    order = np.argsort(rows[HASH].to_numpy(), kind="stable")[shard.skip : shard.skip + shard.rows]
    if len(order) != shard.rows:
        raise RuntimeError(f"shard {shard}: {len(order)} rows came")
    rows = rows.drop_columns([HASH]).take(pa.array(order)).cast(layout)
    place, name = writing.attempts or folder, shard_name(shard.split, shard.number)
    if not is_folder(place):
        raise UserError(
            f"{place}: not seen by the executor on {socket.gethostname()}, as it is by others; mount it there"
        )
    context = TaskContext.get()
    # Another attempt at this task may be under way: each has a file of its own, and the last to be whole stays.
    unfinished = place / f"{number}-{context.taskAttemptId() if context else 0}.parquet"
    try:
        with shard_writer(unfinished, layout) as file:
            for start in range(0, shard.rows, ROW_GROUP_ROWS):
                file.write_table(rows.slice(start, ROW_GROUP_ROWS))
        if writing.attempts is None:
            for data in pieces_of(unfinished):
                yield name, data
        else:
            rename(unfinished, writing.folder / name)
    finally:
        remove(unfinished)


@task
def digest(
    plan: Plan, folder: Path, columns: Iterable[tuple[str, str]], writing: Writing
) -> Iterator[dict[str, dict[str, str]]]:
    """`digests` of columns."""
    yield from digests(columns, writing)


def digests(columns: Iterable[tuple[str, str]], writing: Writing) -> Iterator[dict[str, dict[str, str]]]:
    """Digests of columns, each given by split and name: {split: {name: digest}}."""
    for split, name in columns:
        content = ContentDigests()
        for path in writing.dataset.files(writing.folder, split):
            with open_read(path) as opened, pq.ParquetFile(opened) as file:
                for group in range(file.num_row_groups):
                    content.add(split, file.read_row_group(group, columns=[name]))
        yield content.hexdigests()
