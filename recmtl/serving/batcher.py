"""One thread runs the model on whatever requests wait: under load batches grow by themselves, and nobody waits for one.

handlers ──submit──▶ queue (bounded in rows) ──▶ thread: take what is there, score it together ──▶ futures
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from recmtl.errors import UserError
from recmtl.serving.columns import BadRequest, Request
from recmtl.serving.joint import Answer, JointScorer
from recmtl.serving.limits import Limits

Served = tuple[JointScorer, np.ndarray]
"""Which model answered, and its probabilities."""


@dataclass
class Waiting:
    """A request in the queue."""

    request: Request
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Served]
    since: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class BatchReport:
    """What a batch took, for the metrics."""

    rows: int
    seconds: float
    waited: list[float]
    """Seconds that each request waited in the queue."""


class Batcher:
    """Scores requests of all handlers.

    Args:
        scorer: gives the model of the moment; asked once a batch.
        limits: of the queue and of a batch.
        report: called after every batch, in the model's thread.
    """

    def __init__(
        self, scorer: Callable[[], JointScorer], limits: Limits, report: Callable[[BatchReport], None]
    ) -> None:
        self._scorer, self._limits, self._report = scorer, limits, report
        self._queue: deque[Waiting] = deque()
        self._rows = 0
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting_rows(self) -> int:
        """Rows in the queue."""
        return self._rows

    @property
    def is_alive(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.is_alive()

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.is_alive and not self._ended

    async def score(self, request: Request) -> Served:
        """Wait for a request's probabilities.

        Raises:
            BadRequest: the queue is full (429), it took too long (504), or the columns are wrong (400).
        """
        loop = asyncio.get_running_loop()
        waiting = Waiting(request, loop, loop.create_future())
        with self._changed:
            if self._ended:
                raise BadRequest("the server is shutting down; try another", 503)
            if self._queue and self._rows + request.rows > self._limits.queue_rows:
                raise BadRequest(f"{self._rows} rows are waiting already; try again later", 429)
            self._queue.append(waiting)
            self._rows += request.rows
            self._changed.notify()
        try:
            return await asyncio.wait_for(waiting.future, self._limits.seconds)
        except asyncio.TimeoutError:
            raise BadRequest(
                f"not answered within {self._limits.seconds:g} s; send fewer rows at a time", 504
            ) from None

    def end(self) -> None:
        """Answer what waits, then stop."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            began = time.perf_counter()
            scorer = self._scorer()
            try:
                answers: list[Answer] = scorer.score([waiting.request for waiting in batch])
            except Exception as error:
                answers = [error] * len(batch)  # the handlers say so, and the thread lives on
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.loop.call_soon_threadsafe(_settle, waiting.future, scorer, answer)
            rows = sum(waiting.request.rows for waiting in batch)
            waited = [began - waiting.since for waiting in batch]
            self._report(BatchReport(rows, time.perf_counter() - began, waited))

    def _take(self) -> list[Waiting]:
        """The requests that wait, as many as fit a batch, those left out that nobody waits for any more."""
        while True:
            with self._changed:
                while not self._queue and not self._ended:
                    self._changed.wait()
                batch: list[Waiting] = []
                rows = 0
                while self._queue and (not batch or rows + self._queue[0].request.rows <= self._limits.batch_rows):
                    waiting = self._queue.popleft()
                    self._rows -= waiting.request.rows
                    if not waiting.future.done():
                        batch.append(waiting)
                        rows += waiting.request.rows
                if batch or self._ended:
                    return batch


def _settle(future: asyncio.Future[Served], scorer: JointScorer, answer: np.ndarray | Exception) -> None:
    if future.done():  # it took too long, or the client went away
        return
    if isinstance(answer, UserError):
        future.set_exception(BadRequest(str(answer)))
    elif isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result((scorer, answer))
