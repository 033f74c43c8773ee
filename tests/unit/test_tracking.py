"""Metrics on a disk that takes no more: an error that names the file, and what was there stays."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recmtl.errors import UserError
from recmtl.training.tracking import Tracker


@contextmanager
def files_limited(bytes_: int) -> Iterator[None]:
    """No file of this process may outgrow a size, not even pytest's own output: only for as long as it takes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def fill(run: Path, *, tensorboard: bool) -> None:
    with Tracker(run, enabled=True, tensorboard=tensorboard, step=0) as tracker:
        for step in range(1000):
            tracker.log(step, {"x": 1.0})


def test_lines_that_find_no_room(tmp_path):
    with pytest.raises(UserError, match=r"metrics.jsonl: File too large$"), files_limited(10_000):
        fill(tmp_path, tensorboard=False)


def test_events_that_find_no_room(tmp_path):
    """Each is longer than its line."""
    message = r"tensorboard/events.out.tfevents.\S+: File too large$"
    with pytest.raises(UserError, match=message), files_limited(10_000):
        fill(tmp_path, tensorboard=True)


def test_lines_are_not_lost_when_those_after_a_step_are_dropped(tmp_path):
    lines = "".join(f'{{"step": {step}}}\n' for step in range(100))
    (tmp_path / "metrics.jsonl").write_text(lines)
    with pytest.raises(UserError, match=r"metrics.jsonl: File too large$"), files_limited(500):
        Tracker(tmp_path, enabled=True, tensorboard=False, step=50)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
