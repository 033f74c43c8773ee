"""The embedded SQL engine: settings, quoting, and its errors in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from recmtl.errors import UserError, is_out_of_memory
from recmtl.runtime.storage import remote_files

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
OVERHEAD_BYTES = 500 * 10**6
"""Memory of the process that the engine does not count: code, Python, a part of the raw rows, buffers for Parquet."""
COUNTED = 0.9
"""Share that the engine counts of the memory it takes: at 50 M events it held a tenth more than its own limit."""

ENGINE_ERRORS = (duckdb.Error, pa.ArrowException, OSError, RuntimeError)
"""What a query raises: one whose result is streamed Arrow's errors and an OSError that is none of the operating
system's, one that is interrupted a RuntimeError."""

MOST_THREADS = 1024
"""More than machines have; the engine would start any number of them."""
REFUSED = "#refused"
"""Stands around the line that says why a column cannot be read."""


def parse_size(text: str) -> int:
    """A size such as ``4GB`` or ``512MiB`` in bytes.

    Raises:
        UserError: it is not a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text.strip(), re.IGNORECASE)
    if not found:
        raise UserError(f"--memory-limit: {text!r} is not a size; write one such as 4GB or 512MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def connect(memory_limit: str, threads: int | None, spill: Path, *, ordered: bool = False) -> duckdb.DuckDBPyConnection:
    """An in-memory database for a process of `memory_limit` that spills to the folder `spill`.

    Args:
        memory_limit: such as ``4GB``.
        threads: all cores when None.
        spill: folder for what does not fit.
        ordered: keep the order of rows where a query does not ask for one; that costs memory.

    Raises:
        UserError: the limit or the number of threads makes no sense.
    """
    limit = parse_size(memory_limit)
    if threads is not None and threads < 1:
        raise UserError(f"--threads: {threads} is out of range; the least is 1")
    if threads is not None and threads > MOST_THREADS:
        raise UserError(f"--threads: {threads} is out of range; the most is {MOST_THREADS}")
    settings = {
        "memory_limit": f"{max(int(COUNTED * limit) - OVERHEAD_BYTES, limit // 2) // 1000}KB",
        "threads": str(threads or os.cpu_count() or 1),
        "temp_directory": str(spill),
        "preserve_insertion_order": str(ordered).lower(),
        # What goes through Arrow files must come back as it was.
        "arrow_lossless_conversion": "true",
        # Preparing data must not reach for the network.
        "autoinstall_known_extensions": "false",
    }
    try:
        connection = duckdb.connect(config=settings)  # type: ignore[arg-type]
        # Casts between times and dates must not depend on where the machine stands.
        connection.execute("set timezone = 'UTC'")
        connection.execute("set enable_progress_bar = false")
    except duckdb.Error as error:
        raise UserError(f"--memory-limit {memory_limit}: {message(error)}; raise it") from None
    return connection


def open_store(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Let a database read the files of the object store that a path is in, if it is in one."""
    if (files := remote_files(path)) is not None:
        db.register_filesystem(files)


def quote(name: str) -> str:
    """`name` as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def refused_column(line: str) -> str:
    """SQL of a column that must not be read: a query may carry it along, but what uses its values raises `line`."""
    text = literal(f"{REFUSED} {line} {REFUSED}")
    return f"cast(error({text}) as enum({text}))"


def refusal(text: str) -> str | None:
    """The line of a `refused_column` that an error, or the type of a column, is about."""
    found = re.search(f"{REFUSED} (.*?) {REFUSED}", text, re.DOTALL)
    return found and " ".join(found[1].replace("''", "'").split())


def message(error: Exception) -> str:
    """What DuckDB says, in one line, without its excerpt of the query."""
    text = re.split(r"\n+LINE \d+:", str(error))[0]
    return refusal(text) or " ".join(text.split())


def line_number(error: Exception) -> int | None:
    """The line of the statement that DuckDB complains about, from 1."""
    found = re.search(r"\nLINE (\d+):", str(error))
    return int(found[1]) if found else None


@contextmanager
def one_line_errors(where: str, memory_limit: str) -> Iterator[None]:
    """Turn DuckDB's errors into the user's.

    Raises:
        UserError: what DuckDB says, in one line.
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        yield
    except ENGINE_ERRORS as error:
        text = message(error)
        if is_of_the_system(error):
            raise
        if is_interrupted(error):
            raise KeyboardInterrupt from None
        if is_out_of_memory(error):
            hint = f"--memory-limit {memory_limit} is too small; raise it, or lower --threads"
            raise UserError(f"{where}: {hint} ({text})") from None
        if isinstance(error, duckdb.Error):
            raise UserError(f"{where}: {text}") from None
        raise


def is_of_the_system(error: Exception) -> bool:
    """Whether the operating system refused something, such as space on a disk."""
    return getattr(error, "errno", None) is not None


def is_interrupted(error: Exception) -> bool:
    """Whether the query was stopped by Ctrl-C: in the engine, or in a stream of rows that it reads."""
    text = str(error)
    return "interrupted" in text.lower() or "KeyboardInterrupt" in text


def first_row(db: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...] | None:
    """The first row of a query's result, None if it has none."""
    # All rows are fetched: newer versions of DuckDB refuse further work on a connection before the last.
    rows = db.execute(query).fetchall()
    return rows[0] if rows else None


def column_types(db: duckdb.DuckDBPyConnection, view: str) -> dict[str, str]:
    """Names and types of a view's columns."""
    return {name: sql_type for name, sql_type, *_ in db.execute(f"describe {view}").fetchall()}


def query_progress(db: duckdb.DuckDBPyConnection) -> Callable[[], float]:
    """Tells how far the running query is, in percent; always 0 in versions of DuckDB that cannot."""
    return getattr(db, "query_progress", lambda: 0.0)


@contextmanager
def joined_as_written(db: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Joins hold their right side in memory, whatever DuckDB guesses: it does not know how long an Arrow stream is."""
    db.execute("set disabled_optimizers = 'build_side_probe_side'")
    yield
    db.execute("reset disabled_optimizers")


@contextmanager
def plain_arrow(db: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Results come in Arrow's own types: booleans as such, not as an extension that only DuckDB reads back."""
    db.execute("set arrow_lossless_conversion = false")
    yield
    db.execute("set arrow_lossless_conversion = true")


def arrow_batches(db: duckdb.DuckDBPyConnection, query: str, rows: int) -> pa.RecordBatchReader:
    """The result of `query`, streamed in batches of about `rows`."""
    relation = db.sql(query)
    stream = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader
    return stream(rows)


def moment(db: duckdb.DuckDBPyConnection, text: str, column: str, sql_type: str, option: str = "--since") -> str:
    """A moment that a user gave by an option, in SQL.

    Raises:
        UserError: it is none of the column's type.
    """
    value = f"cast({literal(text)} as {sql_type})"
    try:
        db.execute(f"select {value}").fetchall()
    except duckdb.Error as error:
        wanted = f"{sql_type}, which column {column!r} is"
        raise UserError(f"{option}: {text!r} is no {wanted} ({message(error)})") from None
    return value
