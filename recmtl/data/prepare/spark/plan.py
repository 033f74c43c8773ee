"""What a task must know, as the driver tells it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

import recmtl
from recmtl.data.prepare.duck import quote, refusal
from recmtl.data.prepare.stored import Stored, show
from recmtl.data.recipe import Recipe
from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError


@dataclass(frozen=True)
class SourcePlan:
    """A source of files, as the tasks that run the query see it."""

    name: str
    files: tuple[Path, ...]
    sql: str
    """Query that reads it whole."""
    types: dict[str, str]
    """SQL types of its columns."""
    carried: pa.Schema | None = None
    """Columns of its rows that are dealt into partitions; None: every task reads it whole."""

    def create_view(self, db: duckdb.DuckDBPyConnection, stored: Stored) -> None:
        """Create the view of the source.

        Args:
            db: the database.
            stored: the rows of a partition, where it is partitioned.
        """
        view = quote(self.name)
        if self.carried is None:
            db.execute(f"create view {view} as {self.sql}")
            return
        behind = quote(f"#carried {self.name}")
        shown = {name: kind for name, kind in self.types.items() if name in self.carried.names or refusal(kind)}
        show(db, stored, behind, shown)
        columns = (
            quote(name) if name in shown else f"cast(null as {sql_type}) as {quote(name)}"
            for name, sql_type in self.types.items()
        )
        db.execute(f"create view {view} as select {', '.join(columns)} from {behind}")


@dataclass(frozen=True)
class Plan:
    """How a recipe's query runs in tasks."""

    recipe: Recipe
    memory_limit: str
    """Of a task, such as ``4GB``."""
    sources: tuple[SourcePlan, ...]
    """Of files."""
    partitions: int
    """Of the partitioned sources; 1: there are none."""
    ranges: int
    """Of the hash that rows are dealt by once they are the query's."""
    types: dict[str, str]
    """SQL types of the query's columns."""
    selected: dict[str, str]
    """The same of those that the recipe uses."""
    condition: str
    """Which of the query's rows are wanted."""
    encoder: Encoder
    """Before it has seen a row."""
    others: pa.Schema
    """Columns that are no features."""
    versions: dict[str, str]

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns that the query yields for the recipe, as Arrow has them."""
        return pa.schema([*self.encoder.schema, *(field for field in self.others if field.name in self.selected)])

    def check_versions(self) -> None:
        """Raise UserError if a package here is another one than the driver's: hashes and values might differ."""
        for name, version in versions().items():
            if version != self.versions[name]:
                where = f"{socket.gethostname()} has {name} {version}, and the driver {self.versions[name]}"
                raise UserError(f"--engine spark: {where}; give all machines the same packages")


def versions() -> dict[str, str]:
    """Of the packages that what is written depends on."""
    found = {"recmtl": recmtl.__version__, "duckdb": duckdb.__version__}
    return found | {"pyarrow": pa.__version__, "numpy": np.__version__}
