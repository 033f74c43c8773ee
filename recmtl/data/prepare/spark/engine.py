"""Runs a recipe's query, and all that comes after it, as jobs of Spark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyspark import StorageLevel

from recmtl.data.prepare.encode import FeatureStatistics, Shares
from recmtl.data.prepare.engine import Query
from recmtl.data.prepare.examples import SPLIT_VALUE, STORED
from recmtl.data.prepare.extension import last_moment
from recmtl.data.prepare.facts import Facts
from recmtl.data.prepare.shards import schema
from recmtl.data.prepare.spark import encoding, ranks
from recmtl.data.prepare.spark.plan import Plan
from recmtl.data.prepare.spark.planning import make_plan
from recmtl.data.prepare.spark.session import Session, open_session
from recmtl.data.prepare.spark.shards import ShardMap
from recmtl.data.prepare.spark.tasks import is_summary, itself, read_pieces, run_query, sees, store
from recmtl.data.prepare.spark.transfer import from_bytes, unpack
from recmtl.data.prepare.splits import Place
from recmtl.data.prepare.stored import Stored, show
from recmtl.data.prepare.tasks import TaskStatistics
from recmtl.data.recipe import TableSpec
from recmtl.encoding.encoder import FILE_NAME, Encoder
from recmtl.runtime.progress import Progress
from recmtl.runtime.storage import is_file, list_folder, make_folder, write_whole
from recmtl.schema import ENCODER, SPLITS, Dataset


@contextmanager
def open_engine(
    name: str, master: str | None, work: Path, memory_limit: str, memory: int, progress: Progress
) -> Iterator[SparkEngine]:
    """Start Spark, and end it.

    Args:
        name: of the recipe.
        master: see `open_session`.
        work: folder on a disk that the driver and all executors share; where they do not, files go through the driver.
        memory_limit: of a task, such as ``4GB``.
        memory: the same in bytes.
        progress: where to show jobs.
    """
    with open_session(f"recmtl prepare {name}", master, work / "spark", progress) as session:
        token, text = work / "spark" / "token", uuid4().hex
        write_whole(token, text)
        # A cluster tells how many cores it has once executors are there.
        context = session.context
        session.run("waiting for executors", context.parallelize([], 1).count)
        tasks = 2 * context.defaultParallelism
        looks = context.parallelize(range(tasks), tasks).mapPartitions(partial(sees, token, text))
        shared = all(session.run("looking for shared disks", looks.collect))
        if not shared:
            progress.note("not all executors see the disk of the output; what they write goes through the driver")
        yield SparkEngine(session, work, shared, memory_limit, memory)


@dataclass(frozen=True)
class SparkEngine:
    """Runs queries on a cluster."""

    session: Session
    work: Path
    shared: bool
    """Whether executors see `work`."""
    memory_limit: str
    memory: int

    def run(self, query: Query, progress: Progress) -> SparkRows:
        """Run a query, and store its rows on the executors."""
        context = self.session.context
        plan, pieces, sql_type = make_plan(query, self.memory_limit, self.memory, context.defaultParallelism)
        if pieces:
            elements = context.parallelize(pieces, len(pieces)).mapPartitions(
                partial(read_pieces, plan, sql_type=sql_type)
            )
            elements = elements.partitionBy(plan.partitions, itself)
        else:
            elements = context.parallelize([], 1)
        dealt = elements.mapPartitions(partial(run_query, plan)).partitionBy(plan.ranges, itself)
        stored = dealt.mapPartitionsWithIndex(partial(store, plan)).persist(StorageLevel.DISK_ONLY)
        summaries = self.session.run("running the query on every partition", stored.filter(is_summary).collect)
        return SparkRows(self, query, plan, stored, summaries)


class SparkRows:
    """The rows of a query, on the disks of executors."""

    def __init__(self, engine: SparkEngine, query: Query, plan: Plan, stored: Any, summaries: list[Any]) -> None:
        self.rows = sum(summary.rows for summary in summaries)
        self.unlabelled = sum(summary.unlabelled for summary in summaries)
        self._session, self._work, self._shared = engine.session, engine.work, engine.shared
        self._query, self._plan, self._stored, self._summaries = query, plan, stored, summaries
        self._sums = {summary.number: summary.hashes for summary in summaries}

    def facts(self) -> Facts:
        """See `Rows`."""
        total = Facts()
        for summary in self._summaries:
            total.merge(summary.facts)
        return total

    def ranked(self, ranks_of_rows: Iterable[int]) -> list[Place | None]:
        """See `Rows`."""
        wanted, db, types = list(ranks_of_rows), self._query.db, self._plan.selected
        inside = [rank for rank in wanted if rank < self.rows]
        places = dict.fromkeys(wanted)
        if inside:
            points = partial(ranks.tell_points, self._plan, sums=self._sums)
            told = self._session.run("looking for splits", self._stored.mapPartitions(points).collect)
            brackets = ranks.brackets(db, told, inside, types)
            between = partial(ranks.tell_between, self._plan, sums=self._sums, wanted=brackets)
            found = self._session.run("finding splits", self._stored.mapPartitions(between).collect)
            for number, rank in enumerate(inside):
                of_rank = [(before, rows) for of, before, rows in found if of == number]
                places[rank] = ranks.place_between(db, of_rank, rank, types)
        return [places[rank] for rank in wanted]

    def last_moment(self) -> str:
        """See `Rows`."""
        if last := [from_bytes(summary.last) for summary in self._summaries if summary.last is not None]:
            name = SPLIT_VALUE.strip('"')
            show(self._query.db, pa.concat_tables(last), STORED, {name: self._plan.selected[name]})
        return last_moment(self._query.db, self._query.recipe)

    def assign_splits(self, rule: str) -> tuple[TaskStatistics, FeatureStatistics]:
        """See `Rows`."""
        self._rule = rule
        survey = partial(encoding.survey, self._plan, sums=self._sums, rule=rule, parts=self._plan.ranges)
        told = self._stored.mapPartitions(survey).partitionBy(1 + self._plan.ranges, itself)
        merged = told.mapPartitionsWithIndex(partial(encoding.merge, self._plan))
        make_folder(self._work / "counts")
        return self._session.run("counting values", partial(self._gather, merged))

    def _gather(self, merged: Any) -> tuple[TaskStatistics, FeatureStatistics]:
        """Keep the statistics, and the counts in files."""
        files: dict[str, pa.ipc.RecordBatchFileWriter] = {}
        statistics = None
        for element in merged.toLocalIterator(prefetchPartitions=True):
            if isinstance(element, encoding.Statistics):
                statistics = element
                continue
            table, counts = element[0], from_bytes(element[1])
            if table not in files:
                files[table] = pa.ipc.new_file(self._counts(table), counts.schema)
            files[table].write_table(counts)
        for file in files.values():
            file.close()
        assert statistics is not None, "there are rows"
        self._hashes = statistics.hashes
        return statistics.tasks, statistics.features

    def _counts(self, table: str) -> Path:
        return self._work / "counts" / f"{table}.arrow"

    def counts(self, spec: TableSpec) -> Iterator[pa.RecordBatch]:
        """See `Rows`."""
        path = self._counts(spec.name)
        return iter(Stored(path)) if is_file(path) else iter(())

    def write(self, encoder: Encoder, dataset: Dataset, folder: Path) -> tuple[Shares, dict[str, dict[str, str]]]:
        """See `Rows`."""
        context = self._session.context
        for path in list_folder(folder / ENCODER):
            if path.name == FILE_NAME or path.name.endswith((".keys.npy", ".ids.npy")):
                context.addFile(path.as_uri())
        shards = ShardMap(self._hashes)
        attempts = self._work / "attempts" if self._shared else None
        writing = encoding.Writing(self._rule, dataset, shards, folder, attempts)
        for path in (*([attempts] if attempts else []), *(folder / split for split in SPLITS)):
            make_folder(path)
        encode = partial(encoding.encode, self._plan, sums=self._sums, writing=writing)
        dealt = self._stored.mapPartitions(encode).partitionBy(len(shards.shards) + 1, itself)
        written = dealt.mapPartitionsWithIndex(partial(encoding.write_shard, self._plan, writing=writing))
        names = schema(dataset).names
        columns = [(split, name) for split in SPLITS if dataset.rows[split] for name in names]
        if self._shared:
            [shares] = self._session.run("encoding and writing shuffled rows", written.collect)
            digest = partial(encoding.digest, self._plan, writing=writing)
            digests = context.parallelize(columns, min(len(columns), self._plan.ranges)).mapPartitions(digest)
            found = self._session.run("taking digests", digests.collect)
        else:
            written = written.persist(StorageLevel.DISK_ONLY)
            self._session.run("encoding and sorting rows", written.count)
            shares = self._session.run("fetching files", partial(_receive, written, folder))
            found = list(encoding.digests(columns, writing))
        content: dict[str, dict[str, str]] = {}
        for of_columns in found:
            for split, digests_of_split in of_columns.items():
                content.setdefault(split, {}).update(digests_of_split)
        return shares, content


def _receive(written: Any, folder: Path) -> Shares:
    """Write the files of shards into the prepared folder; returns the shares that come with them."""
    shares = Shares(())

    def files() -> Iterator[tuple[str, bytes]]:
        nonlocal shares
        for element in written.toLocalIterator(prefetchPartitions=True):
            if isinstance(element, Shares):
                shares = element
            else:
                yield element

    unpack(files(), folder)
    return shares
