"""What runs in Spark's tasks up to the stored rows: reading, the query, storing. Every function is that of a partition.

An element that goes from one task to the next is a key, the number of the partition that it goes to, and a value.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from recmtl.data.prepare.checks import questions
from recmtl.data.prepare.duck import arrow_batches, connect, one_line_errors, open_store, parse_size, plain_arrow, quote
from recmtl.data.prepare.examples import (
    HASH,
    ORDER,
    SPLIT_VALUE,
    STORED,
    create_query,
    create_selected,
    query_batches,
    show_stored,
    splits_and_hashes,
)
from recmtl.data.prepare.factorized import FactorizedRows, even_batches
from recmtl.data.prepare.facts import Facts, find_facts
from recmtl.data.prepare.labelled import store_rows
from recmtl.data.prepare.numbering import number_rows
from recmtl.data.prepare.partitions import partition_key
from recmtl.data.prepare.queries import create_query_view
from recmtl.data.prepare.sources import query_errors
from recmtl.data.prepare.spark.errors import marked
from recmtl.data.prepare.spark.pieces import Piece
from recmtl.data.prepare.spark.plan import Plan
from recmtl.data.prepare.spark.transfer import deal, from_bytes, pack, to_bytes, unpack
from recmtl.data.prepare.splits import create_examples
from recmtl.data.prepare.stored import CHUNK_ROWS, Stored
from recmtl.errors import UserError
from recmtl.runtime.storage import is_file, read_text

P = ParamSpec("P")
T = TypeVar("T")
Element = tuple[int, Any]


def task(function: Callable[Concatenate[Plan, Path, P], Iterator[T]]) -> Callable[Concatenate[Plan, P], Iterator[T]]:
    """A task that has a folder of its own, gone afterwards, and whose mistakes the driver can read."""

    @wraps(function)
    def run(plan: Plan, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        try:
            plan.check_versions()
            # Where Spark keeps its own, and removes what an executor that is killed leaves.
            local = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0] or None
            with (
                tempfile.TemporaryDirectory(dir=local, prefix="recmtl-", ignore_cleanup_errors=True) as folder,
                one_line_errors(plan.recipe.origin, plan.memory_limit),
            ):
                yield from function(plan, Path(folder), *args, **kwargs)
        except UserError as error:
            raise marked(error) from None

    return run


def itself(key: int) -> int:
    """The partition that a key names."""
    return key


def sees(path: Path, text: str, _: Iterable[object]) -> Iterator[bool]:
    """Whether this executor sees a file of the driver's, in which there is a text."""
    try:
        yield read_text(path) == text
    except OSError:
        yield False


def open_database(plan: Plan, folder: Path) -> duckdb.DuckDBPyConnection:
    """The database of a task. It has one thread: Spark starts as many tasks as there are cores."""
    return connect(plan.memory_limit, 1, folder / "spill")


def check_seen(*paths: Path) -> None:
    """Raise UserError where raw files that the driver sees are not seen here."""
    for path in paths:
        if not is_file(path):
            raise UserError(
                f"{path}: not seen by the executor on {socket.gethostname()}; mount the raw folder there, too"
            )


@task
def read_pieces(plan: Plan, folder: Path, pieces: Iterable[Piece], sql_type: str) -> Iterator[Element]:
    """Raw rows, by the partition of their source's `partition_by`, whose values compare as an SQL type.

    Values are the name of the source and rows.
    """
    columns = {source.name: source.carried for source in plan.sources}
    sources = {source.name: source for source in plan.recipe.sources}
    for piece in pieces:
        carried = columns[piece.source]
        assert carried is not None
        check_seen(piece.files[0])
        key = f"cast({partition_key(sources[piece.source], sql_type, plan.partitions)} as uinteger)"
        query = f"select {', '.join(map(quote, carried.names))}, {key} from ({piece.sql})"
        with (
            closing(open_database(plan, folder)) as db,
            query_errors(plan.recipe, {piece.source: list(piece.files)}),
        ):
            open_store(db, piece.files[0])
            for batch in arrow_batches(db, query, CHUNK_ROWS):
                rows = pa.RecordBatch.from_arrays(batch.columns[:-1], schema=carried)
                for partition, data in deal(rows, batch.columns[-1].to_numpy()):
                    yield partition, (piece.source, data)


@task
def run_query(plan: Plan, folder: Path, elements: Iterable[Element]) -> Iterator[Element]:
    """What the query yields on a partition, by the range of its hash."""
    carried = {source.name: source.carried for source in plan.sources if source.carried is not None}
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(pa.ipc.new_file(folder / f"{name}.arrow", schema))
            for name, schema in carried.items()
        }
        for _, (name, data) in elements:
            for batch in from_bytes(data).to_batches():
                files[name].write_batch(batch)
    of_files = {source.name: source for source in plan.sources}
    whole = {source.name: list(source.files) for source in plan.sources if source.carried is None}
    seen = [path for paths in whole.values() for path in paths[:1]]
    check_seen(*seen)
    with closing(open_database(plan, folder)) as db, query_errors(plan.recipe, whole), plain_arrow(db):
        if seen:
            open_store(db, seen[0])
        for source in plan.recipe.sources:
            if source.name in of_files:
                of_files[source.name].create_view(db, Stored(folder / f"{source.name}.arrow"))
            else:
                create_query_view(db, quote(source.name), source.sql, f"{plan.recipe.origin}: {source.name}: sql")
        create_query(db, plan.recipe)
        create_selected(db, plan.recipe, plan.types, plan.condition)
        for batch in query_batches(db, [None]):
            hashes = batch.column(HASH.strip('"')).to_numpy()
            yield from deal(batch, range_of(hashes, plan.ranges))


def range_of(hashes: np.ndarray, ranges: int) -> np.ndarray:
    """In which of so many ranges of equal width hashes lie, int64 [n]."""
    high = (hashes >> np.uint64(32)) * np.uint64(ranges)
    return (high >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True)
class Summary:
    """What the rows of one range are."""

    number: int
    """Of the range."""
    rows: int
    unlabelled: int
    hashes: int
    """Sum of the products of each row's hash and that of all that is read of it, labels left out, modulo 2^64: tells
    whether they are the same when they are made again."""
    facts: Facts
    last: bytes | None
    """The last value of the split's column; None: there is none."""


@task
def store(plan: Plan, folder: Path, number: int, elements: Iterable[Element]) -> Iterator[Summary | tuple[str, bytes]]:
    """A range of rows, numbered and factorised: a summary, then the files of a `FactorizedRows`."""
    rows = FactorizedRows(folder / "rows", plan.encoder, plan.others)
    batches = (batch for _, data in elements for batch in from_bytes(data).to_batches())
    unlabelled = store_rows(plan.recipe, even_batches(batches), rows)
    if not rows.rows:
        yield Summary(number, 0, unlabelled, 0, Facts(), None)
        return
    with closing(open_database(plan, folder)) as db:
        show_stored(db, rows, plan.selected)
        number_rows(db, plan.recipe, rows.stored(), rows.rows, parse_size(plan.memory_limit))
        facts = find_facts(db, questions(plan.recipe, plan.selected))
        last = None
        if plan.recipe.split.by == "time":
            query = f"select max({SPLIT_VALUE}) as {SPLIT_VALUE} from {STORED}"
            last = to_bytes(arrow_batches(db, query, 1).read_all())
    yield Summary(number, rows.rows, unlabelled, _sum_of_hashes(rows), facts, last)
    yield from pack(rows.folder)


def _sum_of_hashes(rows: FactorizedRows) -> int:
    columns = ([batch.column(name.strip('"')).to_numpy() for name in (HASH, ORDER)] for batch in rows.stored())
    return sum(int((hashes * (of_features | np.uint64(1))).sum()) for hashes, of_features in columns) % 2**64


def is_summary(element: Summary | tuple[str, bytes]) -> bool:
    """Whether an element of `store` is the summary."""
    return isinstance(element, Summary)


def open_rows(
    plan: Plan, folder: Path, elements: Iterable[Summary | tuple[str, bytes]], sums: dict[int, int]
) -> FactorizedRows | None:
    """The rows of a range that were stored; None: there are none.

    Args:
        plan: of the query.
        folder: for them.
        elements: of `store`.
        sums: of the hashes, by range, as they were at first.

    Raises:
        UserError: they are other ones.
    """
    rows = FactorizedRows(folder / "rows", plan.encoder, plan.others)

    def files() -> Iterator[tuple[str, bytes]]:
        for element in elements:
            if not isinstance(element, Summary):
                yield element
                continue
            rows.rows = element.rows
            if sums[element.number] != element.hashes:
                raise UserError(
                    f"{plan.recipe.origin}: sql yields other rows when it runs again, as it did for those that were "
                    "lost with an executor; let it depend on nothing but the raw rows"
                )

    unpack(files(), rows.folder)
    return rows if rows.rows else None


def show_splits(
    plan: Plan, db: duckdb.DuckDBPyConnection, rows: FactorizedRows, rule: str
) -> tuple[np.ndarray, np.ndarray]:
    """The split (uint8) and the hash (uint64) of every stored row, by SQL of the split."""
    show_stored(db, rows, plan.selected)
    create_examples(db, rule)
    return splits_and_hashes(db, rows.folder, rows.rows)
