"""SIGTERM asks a run to save what it has and end; all ranks agree on the step after which they do."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from recmtl.distributed.context import DistContext
from recmtl.runtime.exit import note_signal

SECONDS = 1.0
"""Between two votes, where a step takes less."""


class StopRequest:
    """Whether SIGTERM came, on any rank: a vote that runs beside the steps.

    A vote is a sum over the ranks on the host, begun after one step and read some steps later, when it has long ended:
    no step waits for it, no device is asked. All ranks read the same sum after the same step, so all stop there. The
    first rank measures how many steps a second take, and its number travels with the vote: all know when the next is
    due. From signal to stop it takes two such intervals, at least two steps.

    To be used as a context: in it, SIGTERM does nothing else.
    """

    def __init__(self, context: DistContext) -> None:
        self.context = context
        self._asked = self._decided = False
        self._vote: tuple[torch.Tensor, dist.Work] | None = None
        self.restart()

    def restart(self) -> None:
        """Steps of another kind begin: how long they take is not known yet."""
        self._read()
        self._interval = self._left = 1
        self._began = time.monotonic()

    def agreed(self) -> bool:
        """Whether to stop now; to be called by all ranks after every step."""
        if self.context.world_size == 1:
            return self._asked
        self._left -= 1
        if self._left == 0 and not self._decided:
            taken, self._interval = self._interval, self._read()
            now = time.monotonic()
            steps = SECONDS * taken / (now - self._began) if self.context.is_first else 0.0
            total = torch.tensor([float(self._asked), steps])
            self._vote = total, dist.all_reduce(total, group=self.context.cpu_group, async_op=True)
            self._began, self._left = now, self._interval
        return self._decided

    def _read(self) -> int:
        """Read the vote; returns how many steps the next one shall take."""
        if not self._vote:
            return 1
        total, work = self._vote
        work.wait()
        asked, steps = total.tolist()
        self._decided = asked > 0
        self._vote = None
        return max(1, int(steps))

    def ask(self) -> None:
        """Ask for a stop as SIGTERM does; any thread of any rank may."""
        self._asked = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        note_signal(number)
        self.ask()

    def __enter__(self) -> StopRequest:
        self._before: Any = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
