"""The engine of one machine: DuckDB, whose rows lie on disk between the steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from recmtl.data.prepare.buckets import BucketWriter, sorted_rows
from recmtl.data.prepare.checks import questions
from recmtl.data.prepare.content import ContentDigests
from recmtl.data.prepare.duck import column_types, plain_arrow
from recmtl.data.prepare.encode import FeatureStatistics, Shares, encode_into_buckets
from recmtl.data.prepare.engine import Query
from recmtl.data.prepare.examples import SELECTED, query_batches, show_stored, splits_and_hashes
from recmtl.data.prepare.extension import last_moment
from recmtl.data.prepare.factorized import FactorizedRows
from recmtl.data.prepare.facts import Facts, find_facts
from recmtl.data.prepare.labelled import store_rows
from recmtl.data.prepare.numbering import number_rows
from recmtl.data.prepare.partitions import show_partitions
from recmtl.data.prepare.shards import schema, write_shards
from recmtl.data.prepare.splits import Place, create_examples, ranked_rows
from recmtl.data.prepare.tasks import TaskStatistics
from recmtl.data.prepare.vocabularies import partial_counts
from recmtl.data.recipe import TableSpec
from recmtl.encoding.encoder import Encoder
from recmtl.runtime.progress import Progress
from recmtl.schema import Dataset


@dataclass(frozen=True)
class LocalEngine:
    """Runs queries on this machine."""

    folder: Path
    """For the rows."""
    memory: int
    """Of the process, bytes."""

    def run(self, query: Query, progress: Progress) -> LocalRows:
        """Run a query, part by part where there are many rows and the recipe allows it."""
        db, recipe = query.db, query.recipe
        types = column_types(db, SELECTED)
        rows = FactorizedRows(self.folder, query.encoder, query.others)
        parts = show_partitions(db, recipe, self.memory, rows.folder / "parts", progress)
        with closing(parts) as partitions, plain_arrow(db):
            unlabelled = store_rows(recipe, query_batches(db, partitions), rows, db)
        show_stored(db, rows, types)
        return LocalRows(query, types, rows, unlabelled, self.memory, progress)


class LocalRows:
    """The rows of a query, in files."""

    def __init__(
        self,
        query: Query,
        types: dict[str, str],
        stored: FactorizedRows,
        unlabelled: int,
        memory: int,
        progress: Progress,
    ) -> None:
        self.rows, self.unlabelled = stored.rows, unlabelled
        self._query, self._types, self._stored, self._memory, self._progress = query, types, stored, memory, progress

    def facts(self) -> Facts:
        """See `Rows`."""
        db, recipe = self._query.db, self._query.recipe
        number_rows(db, recipe, self._stored.stored(), self.rows, self._memory)
        return find_facts(db, questions(recipe, self._types))

    def ranked(self, ranks: Iterable[int]) -> list[Place | None]:
        """See `Rows`."""
        return ranked_rows(self._query.db, ranks)

    def last_moment(self) -> str:
        """See `Rows`."""
        return last_moment(self._query.db, self._query.recipe)

    def assign_splits(self, rule: str) -> tuple[TaskStatistics, FeatureStatistics]:
        """See `Rows`."""
        stored, tasks = self._stored, TaskStatistics(self._query.recipe)
        create_examples(self._query.db, rule)
        self._splits, self._hashes = splits_and_hashes(self._query.db, stored.folder, self.rows)
        features = FeatureStatistics(self._query.encoder)
        for batch in stored.batches():
            splits, hashes = self._splits[batch.rows], self._hashes[batch.rows]
            tasks.add(batch.columns, splits, hashes)
            features.add(batch, splits)
        return tasks, features

    def counts(self, spec: TableSpec) -> Iterator[pa.RecordBatch]:
        """See `Rows`."""
        return partial_counts(self._stored, self._splits, spec, self._query.recipe.split.vocab_from)

    def write(self, encoder: Encoder, dataset: Dataset, folder: Path) -> tuple[Shares, dict[str, dict[str, str]]]:
        """See `Rows`."""
        rows, progress, recipe = self._stored, self._progress, self._query.recipe
        shares, content = Shares(encoder.features), ContentDigests()
        ranges, encoded = rows.ranges(self._memory), rows.folder / "encoded"
        with (
            progress.stage("encoding rows", self.rows) as advance,
            BucketWriter(encoded, schema(dataset), ranges) as buckets,
        ):
            for done in encode_into_buckets(
                rows, encoder, recipe, dataset, shares, self._splits, self._hashes, buckets
            ):
                advance(done)
        rows.remove()
        with progress.stage("writing shuffled rows", self.rows) as advance:
            for written in write_shards(sorted_rows(encoded, ranges), dataset, folder, content):
                advance(written)
        return shares, content.hexdigests()
