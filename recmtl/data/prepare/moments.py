"""When the rows of a recipe's query are, without preparing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import duckdb

from recmtl.data.prepare.duck import connect, one_line_errors, parse_size, quote
from recmtl.data.prepare.examples import ROWS, check_columns, create_query
from recmtl.data.prepare.partitions import show_partitions
from recmtl.data.prepare.raw_files import find_files
from recmtl.data.prepare.sources import create_views, query_errors
from recmtl.data.prepare.window import Window
from recmtl.data.recipe import Recipe
from recmtl.errors import UserError
from recmtl.runtime.progress import Progress
from recmtl.schema import FLOATS

MOST_SPANS = 100_000
"""More windows than a job has, for years of hours: their length is a mistake."""


@dataclass(frozen=True)
class Moments:
    """Moments are microseconds since 1970 in UTC, or what numbers the column holds."""

    sql_type: str
    """Of the split's column."""
    spans: tuple[tuple[Fraction, Fraction], ...]
    """First and last moment of the rows of every window that has some, by time. Rounding may join to a window rows just
    before its start: its first moment tells."""
    ahead: int
    """Rows that are later than was asked for."""


def is_time(sql_type: str) -> bool:
    """Whether a split's column of this type holds dates or timestamps, and no numbers."""
    return sql_type == "DATE" or sql_type.startswith("TIMESTAMP")


def find_moments(
    recipe: Recipe,
    raw: Path,
    width: Callable[[str], Fraction],
    *,
    since: str | None,
    lookback: str | None,
    latest: Fraction | None,
    memory_limit: str,
    work: Path,
) -> Moments:
    """Run a recipe's query on a raw folder, for the column of its split by time alone.

    Args:
        recipe: splits by time.
        raw: folder of the raw files.
        width: the length of a window, of the type of the column.
        since: leave out rows before this moment; None: none.
        lookback: how far the query sees before `since`; None: all that there is.
        latest: of dates and timestamps, count rows after this moment apart; None: of none.
        memory_limit: of the process, such as ``4GB``.
        work: folder for what does not fit.

    Raises:
        UserError: a file, a column or an argument has a mistake.
    """
    window = Window(recipe, since=since, lookback=lookback)
    files = find_files(recipe, raw)
    db = connect(memory_limit, None, work / "spill")
    try:
        with one_line_errors(recipe.origin, memory_limit), query_errors(recipe, files):
            create_views(db, recipe, files, raw, in_sight=partial(window.in_sight, db))
            types = create_query(db, recipe)
            check_columns(recipe, types)
            column = str(recipe.split.column)
            sql_type = types[column]
            step = width(sql_type)
            # Only about where a row lies: the first and last moment of each group are exact.
            group = f"floor(cast(moment as double) / {float(step)!r})"
            bound = f"moment > {latest}" if latest is not None and is_time(sql_type) else "false"
            query = (
                f"select {group}, min(moment), max(moment), count(*), {bound} as is_ahead "
                f"from (select {_moment(column, sql_type)} as moment from {ROWS}{window.rows(db, types)}) "
                f"where moment is not null group by {group}, is_ahead limit {MOST_SPANS + 1}"
            )
            return _gathered(sql_type, _results(db, recipe, query, memory_limit, work), recipe)
    finally:
        db.close()


def _moment(column: str, sql_type: str) -> str:
    """The moment in SQL as `Moments` has it; null where it is none, which preparing the row calls a mistake."""
    name = quote(column)
    if is_time(sql_type):
        name = f"cast({name} as timestamp)"
        return f"case when isfinite({name}) then epoch_us({name}) end"
    return f"case when isfinite({name}) then {name} end" if sql_type in FLOATS else name


def _results(
    db: duckdb.DuckDBPyConnection, recipe: Recipe, query: str, memory_limit: str, work: Path
) -> Iterator[list[tuple]]:
    silent = Progress(enabled=False)
    with closing(show_partitions(db, recipe, parse_size(memory_limit), work / "partitions", silent)) as partitions:
        for _ in partitions:
            yield db.execute(query).fetchall()


def _gathered(sql_type: str, results: Iterator[list[tuple]], recipe: Recipe) -> Moments:
    found: dict[float, tuple[Fraction, Fraction]] = {}
    ahead = 0
    for rows in results:
        for group, first, last, count, is_ahead in rows:
            if is_ahead:
                ahead += count
                continue
            span = Fraction(first), Fraction(last)
            known = found.get(group, span)
            found[group] = min(known[0], span[0]), max(known[1], span[1])
        if len(found) > MOST_SPANS:
            raise UserError(f"--every: cuts the rows of {recipe.origin} into more than {MOST_SPANS:,} windows; longer")
    return Moments(sql_type, tuple(found[group] for group in sorted(found)), ahead)
