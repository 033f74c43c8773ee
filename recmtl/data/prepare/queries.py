"""The user's queries as views."""

from __future__ import annotations

import duckdb

from recmtl.data.prepare.duck import line_number, message
from recmtl.errors import UserError


def create_query_view(db: duckdb.DuckDBPyConnection, view: str, sql: str, where: str) -> None:
    """Create a view of a query.

    Args:
        db: the database.
        view: the view's name, quoted.
        sql: the query.
        where: the recipe and the key that the query stands in, for messages.

    Raises:
        UserError: the query is not one valid select; names the line.
    """
    try:
        statements = db.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(f"{where}{_line(error, 0)}: {message(error)}") from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise UserError(f"{where}: must be one select, not {len(statements)} statements or another kind")
    try:
        db.execute(f"create view {view} as\n{sql.rstrip().rstrip(';')}\n")
    except duckdb.Error as error:
        raise UserError(f"{where}{_line(error, 1)}: {message(error)}") from None


def _line(error: Exception, before: int) -> str:
    line = line_number(error)
    return "" if line is None else f", line {line - before}"
