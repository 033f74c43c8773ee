"""What a server takes on: more is refused at once, so that memory and waiting times stay bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval


@dataclass(frozen=True)
class Limits:
    """Bounds of one process."""

    body_mb: Annotated[float, Interval(gt=0)] = 16.0
    """Largest body of a request, in MB; beyond: 413."""
    rows: Annotated[int, Interval(ge=1)] = 10_000
    """Most rows of a request; beyond: 400."""
    batch_rows: Annotated[int, Interval(ge=1)] = 8192
    """Rows that go through the model at a time, of as many requests as are waiting."""
    queue_rows: Annotated[int, Interval(ge=1)] = 65_536
    """Rows that may wait for the model; beyond: 429."""
    seconds: Annotated[float, Interval(gt=0)] = 10.0
    """How long a body may take to arrive, and a request to be answered; beyond: 408, 504."""
