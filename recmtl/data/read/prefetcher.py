"""Reads batches ahead of the step that uses them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

from recmtl.data.read.batch import Batch
from recmtl.errors import UserError

READ_SECONDS = 240.0
"""How long a step waits for its batch: a file system that does not answer must not hold up a job forever. Less than
what ranks wait for each other in a step, so that the rank that waits for its data is the one that says so."""


class Prefetcher(Iterator[Batch]):
    """Runs an iterator in a background thread, up to `depth` items ahead. Close it when leaving early.

    Args:
        source: the iterator.
        depth: items.
        seconds: how long to wait for an item.
    """

    def __init__(self, source: Iterator[Batch], depth: int, seconds: float = READ_SECONDS) -> None:
        self._seconds = seconds
        self.waited = 0.0
        """Seconds that whoever uses the batches stood still for them."""
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name="recmtl-reader", daemon=True)
        self._thread.start()

    def _run(self, source: Iterator[Batch]) -> None:
        try:
            for item in source:
                self._put(item)
                if self._stop.is_set():
                    return
            self._put(StopIteration())
        except BaseException as error:  # raised again where the batches are used
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __next__(self) -> Batch:
        began = time.monotonic()
        try:
            item = self._queue.get(timeout=self._seconds)
        except queue.Empty:
            raise UserError(
                f"no batch within {self._seconds:.0f} s; see whether the file system that holds the data answers"
            ) from None
        self.waited += time.monotonic() - began
        if isinstance(item, BaseException):
            self._queue.put(item)  # the next call ends the same way
            raise item
        return item

    def close(self) -> None:
        """Stop the thread, unless the file system holds it up: then it ends with the process."""
        self._stop.set()
        self._thread.join(timeout=10)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
