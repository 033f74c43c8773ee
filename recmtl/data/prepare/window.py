"""Which rows are written, by the column of a split by time, and how far around them the query sees.

── lookback ──▶ since ── rows that are written ──▶ until ── lookahead ──▶
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from recmtl.data.prepare.duck import first_row, literal, message, moment, quote
from recmtl.data.recipe import Recipe
from recmtl.errors import UserError


@dataclass(frozen=True)
class Window:
    """Bounds on the moments of rows, as text that the column's type takes; None: there is no such bound.

    Raises:
        UserError: the recipe has no column of time.
    """

    recipe: Recipe
    since: str | None = None
    """The rows are from this moment on."""
    after: str | None = None
    """The rows are after this moment; in place of `since`."""
    until: str | None = None
    """The rows are before this moment."""
    lookback: str | None = None
    """How far the query sees before `since` or `after`."""
    lookahead: str | None = None
    """How far the query sees from `until` on."""

    def __post_init__(self) -> None:
        if self.until is not None and self.recipe.split.by != "time":
            raise UserError(
                f"--until: {self.recipe.origin}: [split]: by = {self.recipe.split.by!r} tells no earlier rows from "
                "later ones; --until needs by = 'time'"
            )
        if self.lookahead is not None and self.until is None:
            raise UserError("--lookahead: says how far the query sees after --until; give both")

    @property
    def described(self) -> str:
        """Where the rows lie, as an error message has it."""
        since, after, until = self.since, self.after, self.until
        start = f"after {after}" if after is not None else f"from {since} on" if since is not None else ""
        return " and ".join(filter(None, [start, f"before {until}" if until is not None else ""]))

    def rows(self, db: duckdb.DuckDBPyConnection, types: dict[str, str]) -> str:
        """The condition that tells the rows of the query that are written, as `` where ...``; empty: all are.

        Args:
            db: the database.
            types: of the query's columns.

        Raises:
            UserError: a bound is no moment, or no moment lies between them.
        """
        bounds = []
        if (start := self._start) is not None:
            bounds.append((">" if self.after is not None else ">=", "--since", start))
        if self.until is not None:
            bounds.append(("<", "--until", self.until))
        if not bounds:
            return ""
        column = str(self.recipe.split.column)
        found = [(sign, moment(db, text, column, types[column], option)) for sign, option, text in bounds]
        if len(found) == 2:
            row = first_row(db, f"select {found[0][1]} < {found[1][1]}")
            if row and not row[0]:
                raise UserError(f"--until: {self.until} is no later than {start}, where the new rows begin")
        return " where " + " and ".join(f"{quote(column)} {sign} {value}" for sign, value in found)

    def in_sight(self, db: duckdb.DuckDBPyConnection, types: dict[str, str]) -> str | None:
        """The condition that rows of a source are within what the query may see; None: all are in sight.

        Args:
            db: the database.
            types: of the source's columns.

        Raises:
            UserError: `lookback` or `lookahead` is no length of time for the column.
        """
        column = str(self.recipe.split.column)
        if column not in types:
            return None
        bounds = []
        if self.lookback is not None and (start := self._start) is not None:
            bounds.append((">=", "--since", start, "-", "--lookback", self.lookback))
        if self.lookahead is not None and self.until is not None:
            bounds.append(("<", "--until", self.until, "+", "--lookahead", self.lookahead))
        conditions = [
            f"{quote(column)} {sign} {_shifted(db, column, types[column], *place)}" for sign, *place in bounds
        ]
        return " and ".join(conditions) or None

    @property
    def _start(self) -> str | None:
        return self.since if self.after is None else self.after


def _shifted(
    db: duckdb.DuckDBPyConnection, column: str, sql_type: str, name: str, text: str, sign: str, option: str, length: str
) -> str:
    """A moment moved by a length of time, in SQL."""
    of_dates = sql_type == "DATE" or sql_type.startswith("TIMESTAMP")
    span = f"interval {literal(length)}" if of_dates else f"cast({literal(length)} as {sql_type})"
    shifted = f"{moment(db, text, column, sql_type, name)} {sign} {span}"
    try:
        db.execute(f"select {shifted}").fetchall()
    except duckdb.Error as error:
        wanted = "a length of time such as '14 days'" if of_dates else f"a number as column {column!r} has them"
        raise UserError(f"{option}: {length!r} is not {wanted} ({message(error)})") from None
    return shifted
