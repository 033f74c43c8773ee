"""What `recmtl prepare` asks of an engine that runs a recipe's query: the same of one machine and of a cluster.

    the recipe's query ──▶ rows, wherever the engine keeps them ──facts, places by time──▶ the rule of the splits
        ──statistics, counts of values──▶ the encoder ──▶ shuffled shards

Rules are decided once, by what all rows say together; an engine counts, moves and writes rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa

from recmtl.data.prepare.encode import FeatureStatistics, Shares
from recmtl.data.prepare.facts import Facts
from recmtl.data.prepare.sources import FileView
from recmtl.data.prepare.splits import Place
from recmtl.data.prepare.tasks import TaskStatistics
from recmtl.data.recipe import Recipe, TableSpec
from recmtl.encoding.encoder import Encoder
from recmtl.runtime.progress import Progress
from recmtl.schema import Dataset


@dataclass(frozen=True)
class Query:
    """A recipe's query on raw files."""

    db: duckdb.DuckDBPyConnection
    """Has the views of the sources, of the query, and of its columns that the recipe uses."""
    recipe: Recipe
    files: dict[str, list[Path]]
    """Of every source that has some."""
    views: dict[str, FileView]
    """Of the same."""
    types: dict[str, str]
    """SQL types of the columns of the query."""
    condition: str
    """Which of the query's rows are wanted, as `` where ...``; empty: all."""
    encoder: Encoder
    """Of the features, before it has seen a row."""
    others: pa.Schema
    """Names and types of the columns that are no features."""


class Rows(Protocol):
    """The rows of a query that have a label."""

    rows: int
    unlabelled: int
    """Rows of the query that have none."""

    def facts(self) -> Facts:
        """What checks and splits must know of them."""

    def ranked(self, ranks: Iterable[int]) -> list[Place | None]:
        """The places of the rows of these ranks, from 0, by time and hash."""

    def last_moment(self) -> str:
        """Last moment as text; empty unless rows are split by time."""

    def assign_splits(self, rule: str) -> tuple[TaskStatistics, FeatureStatistics]:
        """Deal the rows into splits by SQL of the index into `SPLITS`; what they say then of tasks and features."""

    def counts(self, spec: TableSpec) -> Iterator[pa.RecordBatch]:
        """How often values of a table that is not hashed occur in the rows that count, as `make_lookup` takes it."""

    def write(self, encoder: Encoder, dataset: Dataset, folder: Path) -> tuple[Shares, dict[str, dict[str, str]]]:
        """Write the shards of a prepared folder.

        Args:
            encoder: whole, and saved in the folder.
            dataset: describes what is written, but for what is returned.
            folder: the prepared folder.

        Returns:
            Shares of missing and unseen values, and the digests of the columns by split.
        """


class Engine(Protocol):
    """Runs queries."""

    def run(self, query: Query, progress: Progress) -> Rows:
        """Run one."""
