"""Two threads run the model on whatever requests wait: under load batches grow by themselves, and nobody waits for one.

    handlers ──▶ queue (bounded in rows) ──▶ thread: take what is there, encode it ──▶ thread: score it ──▶ futures

While one batch is scored, which leaves Python to others, the next is encoded.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Queue

import numpy as np

from recmtl.errors import UserError
from recmtl.serving.columns import BadRequest, Request
from recmtl.serving.joint import Answer, Group, JointScorer
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
    encoding: float
    """Seconds from values to ids."""
    forward: float
    """Seconds from ids to probabilities."""
    waited: list[float]
    """Seconds that each request waited, for either thread."""


@dataclass(frozen=True)
class Encoded:
    """A batch between the two threads."""

    batch: list[Waiting]
    scorer: JointScorer
    groups: list[Group] | Exception
    """What the scorer made of the requests, or why it could not."""
    seconds: float
    """What encoding took."""


class Batcher:
    """Scores requests of all handlers.

    Args:
        scorer: gives the model of the moment; asked once a batch.
        limits: of the queue and of a batch.
        report: called after every batch, in the second thread.
    """

    def __init__(
        self, scorer: Callable[[], JointScorer], limits: Limits, report: Callable[[BatchReport], None]
    ) -> None:
        self._scorer, self._limits, self._report = scorer, limits, report
        self._queue: deque[Waiting] = deque()
        self._rows = 0
        self._changed = threading.Condition()
        self._ended = False
        self._encoded: Queue[Encoded | None] = Queue()
        self._may_encode = threading.Semaphore()
        runs = {"encode": self._encode, "model": self._score}
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in runs.items()]
        for thread in self._threads:
            thread.start()

    @property
    def waiting_rows(self) -> int:
        """Rows in the queue."""
        return self._rows

    @property
    def is_alive(self) -> bool:
        """Whether both threads run."""
        return all(thread.is_alive() for thread in self._threads)

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
        for thread in self._threads:
            thread.join()

    def _encode(self) -> None:
        """Of the first thread."""
        while True:
            # One batch is encoded ahead and no more: what arrives until that is taken joins the next.
            self._may_encode.acquire()
            if not (batch := self._take()):
                return self._encoded.put(None)
            began, scorer = time.perf_counter(), self._scorer()
            groups: list[Group] | Exception
            try:
                groups = scorer.encode([waiting.request for waiting in batch])
            except Exception as error:
                groups = error
            self._encoded.put(Encoded(batch, scorer, groups, time.perf_counter() - began))

    def _score(self) -> None:
        """Of the second thread."""
        while encoded := self._encoded.get():
            self._may_encode.release()
            batch, began = encoded.batch, time.perf_counter()
            try:
                if isinstance(encoded.groups, Exception):
                    raise encoded.groups
                answers: list[Answer] = encoded.scorer.score(encoded.groups)
            except Exception as error:
                answers = [error] * len(batch)  # the handlers say so, and the thread lives on
            seconds = time.perf_counter() - began
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.loop.call_soon_threadsafe(_settle, waiting.future, encoded.scorer, answer)
            rows = sum(waiting.request.rows for waiting in batch)
            waited = [began - encoded.seconds - waiting.since for waiting in batch]
            self._report(BatchReport(rows, encoded.seconds, seconds, waited))

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
