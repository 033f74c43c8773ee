"""``--log-features``: what was scored, as Parquet, so that tomorrow's training data agree with what was served."""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.runtime.folders import file_complete_or_absent
from recmtl.runtime.storage import local_path, make_folder, os_errors
from recmtl.serving.columns import Request

FILE_ROWS = 100_000
FILE_SECONDS = 60.0
"""A file is written when it has so many rows, or so long after its first one."""
MOST_WAITING = 1000
"""Requests that may wait to be written; more are dropped, and counted."""

log = logging.getLogger("recmtl.serving")


class FeatureLog:
    """Writes a share of the requests, from a thread of its own.

    A file has the columns of the recipe's query that the model read, ``p_TASK``, ``model_version`` and ``scored_at``
    (UTC). It is complete or absent.

    Args:
        folder: for the files; made where it is missing.
        share: of the requests to write, 0 to 1.
        schema: names and types of the columns.
        dropped: called with a number of rows that were not written.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, share: float, schema: pa.Schema, dropped: Callable[[int], None]) -> None:
        with os_errors(folder):
            make_folder(folder)
        self._folder, self._share, self._schema, self._dropped = folder, share, schema, dropped
        self._queue: queue.Queue[pa.Table | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="feature log", daemon=True)
        self._thread.start()

    def add(self, request: Request, outputs: tuple[str, ...], scores: np.ndarray, version: str) -> None:
        """Take note of a request, if it is among the share."""
        if random.random() >= self._share or not request.rows:
            return
        try:
            columns = {field.name: _whole(request, field) for field in self._schema if field.name in request.columns}
        except pa.ArrowException:  # a value that the column cannot have: it was scored as unseen
            return self._dropped(request.rows)
        columns |= {name: pa.array(scores[:, place]) for place, name in enumerate(outputs)}
        now = pa.scalar(datetime.now(timezone.utc), pa.timestamp("us", tz="UTC"))
        columns |= {"model_version": _repeat(pa.scalar(version), request.rows), "scored_at": _repeat(now, request.rows)}
        try:
            self._queue.put_nowait(pa.table(columns))
        except queue.Full:
            self._dropped(request.rows)

    def end(self) -> None:
        """Write what is left."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        held: list[pa.Table] = []
        since = time.monotonic()
        while True:
            left = FILE_SECONDS - (time.monotonic() - since) if held else None
            try:
                table = self._queue.get(timeout=None if left is None else max(left, 0.0))
                ended = table is None
            except queue.Empty:
                table, ended = None, False
            if table is not None:
                since = since if held else time.monotonic()
                held.append(table)
            rows = sum(part.num_rows for part in held)
            late = bool(held) and time.monotonic() - since >= FILE_SECONDS
            if held and (ended or late or rows >= FILE_ROWS):
                self._write(held, rows)
                held = []
            if ended:
                return

    def _write(self, parts: list[pa.Table], rows: int) -> None:
        name = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}-{os.getpid()}.parquet"
        try:
            # Models that take over may read other columns.
            together = pa.concat_tables(parts, promote_options="default")
            with file_complete_or_absent(self._folder / name) as path:
                pq.write_table(together, local_path(path))
        except Exception as error:
            log.error("feature log: %s rows lost: %s", rows, error)
            self._dropped(rows)


def _whole(request: Request, field: pa.Field) -> pa.Array:
    """A column with a value for every row, in the type that the model was trained on."""
    values = request.columns[field.name].cast(field.type)
    return values if len(values) == request.rows else _repeat(values[0], request.rows)


def _repeat(value: pa.Scalar, rows: int) -> pa.Array:
    return pa.array([value.as_py()], value.type).take(pa.array(np.zeros(rows, np.int32)))
