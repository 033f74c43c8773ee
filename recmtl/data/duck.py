"""The embedded SQL engine: settings, quoting, and its errors in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from recmtl.errors import UserError

UNITS = "KB|MB|GB|TB|KiB|MiB|GiB|TiB"


def connect(memory_limit: str, threads: int | None, spill: Path) -> duckdb.DuckDBPyConnection:
    """An in-memory database that keeps to `memory_limit` and spills to the folder `spill`.

    Raises:
        UserError: the limit or the number of threads makes no sense.
    """
    if not re.fullmatch(rf"\d+(\.\d+)?\s*({UNITS})", memory_limit.strip(), re.IGNORECASE):
        raise UserError(f"--memory-limit: {memory_limit!r} is not a size; write one such as 4GB or 512MB")
    if threads is not None and threads < 1:
        raise UserError(f"--threads: {threads} is out of range; the least is 1")
    settings = {
        "memory_limit": memory_limit.strip(),
        "threads": str(threads or os.cpu_count() or 1),
        "temp_directory": str(spill),
        # Order is asked for where it matters; elsewhere keeping it only costs memory.
        "preserve_insertion_order": "false",
        # Preparing data must not reach for the network.
        "autoinstall_known_extensions": "false",
    }
    try:
        connection = duckdb.connect(config=settings)  # type: ignore[arg-type]
        # Casts between times and dates must not depend on where the machine stands.
        connection.execute("set timezone = 'UTC'")
        connection.execute("set enable_progress_bar = false")
    except duckdb.Error as problem:
        raise UserError(f"--memory-limit {memory_limit}: {message(problem)}; raise it") from None
    return connection


def quote(name: str) -> str:
    """`name` as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def message(problem: Exception) -> str:
    """What DuckDB says, in one line, without its excerpt of the query."""
    text = re.split(r"\n+LINE \d+:", str(problem))[0]
    return " ".join(text.split())


def line_number(problem: Exception) -> int | None:
    """The line of the statement that DuckDB complains about, from 1."""
    found = re.search(r"\nLINE (\d+):", str(problem))
    return int(found[1]) if found else None


@contextmanager
def stage(what: str, memory_limit: str) -> Iterator[None]:
    """Turn DuckDB's errors while doing `what` into one line."""
    try:
        yield
    except duckdb.OutOfMemoryException as problem:
        raise UserError(
            f"{what}: --memory-limit {memory_limit} is too small; raise it, or lower --threads ({message(problem)})"
        ) from None
    except duckdb.Error as problem:
        raise UserError(f"{what}: {message(problem)}") from None
