"""Finds rows by their rank in time among the rows of all ranges, without sorting them all in one place.

Every range sorts its own rows and tells every n-th of them. How many rows lie before such a row is known then, give or
take n for every range, and so between which two of them the row lies that is sought. Of the rows there, which are few,
it is found exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from recmtl.data.prepare.duck import arrow_batches, first_row
from recmtl.data.prepare.examples import HASH, SPLIT_VALUE, STORED, show_stored
from recmtl.data.prepare.spark.plan import Plan
from recmtl.data.prepare.spark.tasks import Summary, open_database, open_rows, task
from recmtl.data.prepare.spark.transfer import from_bytes, to_bytes
from recmtl.data.prepare.splits import Place, from_place, ranked_rows
from recmtl.data.prepare.stored import show

POINTS = 1024
"""Rows that a range tells, about."""


class Between(NamedTuple):
    """Two places between which a row lies: at the first or after it, and before the second."""

    first: Place | None
    """None: it may be any row from the first on."""
    end: Place | None
    """None: it may be any row up to the last."""

    @property
    def condition(self) -> str:
        """Whether a row lies there."""
        first = "true" if self.first is None else f"({from_place(self.first)})"
        return first if self.end is None else f"{first} and not ({from_place(self.end)})"


class Points(NamedTuple):
    """Every `step`-th row of a range, in the order of time."""

    rows: bytes
    step: int


@task
def tell_points(
    plan: Plan, folder: Path, elements: Iterable[Summary | tuple[str, bytes]], sums: dict[int, int]
) -> Iterator[Points]:
    """Some rows of a range."""
    rows = open_rows(plan, folder, elements, sums)
    if rows is None:
        return
    with closing(open_database(plan, folder)) as db:
        show_stored(db, rows, plan.selected)
        yield points(db, max(1, rows.rows // POINTS))


def points(db: duckdb.DuckDBPyConnection, step: int) -> Points:
    """Every `step`-th row of `STORED`."""
    numbered = (
        f"select {SPLIT_VALUE}, {HASH}, row_number() over (order by {SPLIT_VALUE}, {HASH}) as number from {STORED}"
    )
    query = f"select {SPLIT_VALUE}, {HASH} from ({numbered}) where number % {step} = 0"
    return Points(to_bytes(arrow_batches(db, query, POINTS).read_all()), step)


@task
def tell_between(
    plan: Plan,
    folder: Path,
    elements: Iterable[Summary | tuple[str, bytes]],
    sums: dict[int, int],
    wanted: Sequence[Between],
) -> Iterator[tuple[int, int, bytes]]:
    """For each of the wanted places of a range: its number, how many rows lie before it, and those that lie there."""
    rows = open_rows(plan, folder, elements, sums)
    if rows is None:
        return
    with closing(open_database(plan, folder)) as db:
        show_stored(db, rows, plan.selected)
        for number, between in enumerate(wanted):
            yield number, *rows_between(db, between)


def rows_between(db: duckdb.DuckDBPyConnection, between: Between) -> tuple[int, bytes]:
    """How many rows of `STORED` lie before a place, and those that lie there."""
    before = 0
    if between.first is not None:
        found = first_row(db, f"select count(*) from {STORED} where not ({from_place(between.first)})")
        before = found[0] if found else 0
    query = f"select {SPLIT_VALUE}, {HASH} from {STORED} where {between.condition}"
    return before, to_bytes(arrow_batches(db, query, POINTS).read_all())


def brackets(
    db: duckdb.DuckDBPyConnection, told: Sequence[Points], ranks: Iterable[int], types: dict[str, str]
) -> list[Between]:
    """Where the rows of these ranks, from 0, lie.

    Args:
        db: any database.
        told: by all ranges.
        ranks: that are less than the number of rows.
        types: of the columns.
    """
    tables = [
        from_bytes(some.rows).append_column("step", pa.array([some.step] * from_bytes(some.rows).num_rows, pa.int64()))
        for some in told
    ]
    slack = sum(some.step - 1 for some in told)
    value, key = SPLIT_VALUE.strip('"'), HASH.strip('"')
    shown = {value: types[value], key: types[key], "step": "BIGINT"}
    show(db, pa.concat_tables(tables), '"#points"', shown)
    db.execute(
        f'create or replace table "#told" as select cast({SPLIT_VALUE} as varchar) as moment, {HASH} as key, '
        f"typeof({SPLIT_VALUE}) as sql_type, cast(sum(step) over (order by {SPLIT_VALUE}, {HASH}) as bigint) as upto "
        'from "#points"'
    )
    query = 'select moment, key, sql_type from "#told"'
    found = []
    for rank in ranks:
        # At a point or before it lie `upto` rows, and up to `slack` more.
        first = first_row(db, f"{query} where upto + {slack} <= {rank} order by upto desc limit 1")
        end = first_row(db, f"{query} where upto >= {rank + 2} order by upto limit 1")
        found.append(Between(*(None if row is None else Place(*row) for row in (first, end))))
    db.execute('drop table "#told"')
    return found


def place_between(
    db: duckdb.DuckDBPyConnection, told: Sequence[tuple[int, bytes]], rank: int, types: dict[str, str]
) -> Place | None:
    """The row of a rank.

    Args:
        db: any database.
        told: of every range, how many rows lie before the bracket of the rank, and those in it.
        rank: from 0, among all rows.
        types: of the columns.
    """
    before = sum(count for count, _ in told)
    table = pa.concat_tables(from_bytes(data) for _, data in told)
    show(db, table, STORED, {name: types[name] for name in table.column_names})
    return ranked_rows(db, [rank - before])[0]
