"""SIGKILL of `recmtl prepare --extend` in real processes: what it writes is whole or not there, what it reads stays."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from days import Log
from jobs import Job, running

KILLS = 25
ROWS = 60_000
TABLE = "expire = 2\nmin_count = 2\nmax_rows = 20000"

Files = dict[str, bytes]


class Killed:
    """Two days of rows, the first prepared, and what the second becomes when nobody disturbs it.

    Attributes:
        names: of the files that were seen below the hidden folder meanwhile, in order.
        began, seconds: when the hidden folder appeared after the start, and how long it was there.
    """

    def __init__(self, folder: Path) -> None:
        self.log = log = Log(folder, TABLE)
        rng = np.random.default_rng(0)
        for day in range(2):
            users, items = rng.integers(0, 5000, ROWS) + 3000 * day, rng.zipf(1.1, ROWS) % 30_000
            rows = [(f"u{user}", int(item)) for user, item in zip(users, items, strict=True)]
            log.write(rows, at=pa.array(np.arange(ROWS) + ROWS * day))
            if day == 0:
                log.extend(0)
        self.parent = contents(log.data(0))
        self.raw = contents(log.raw)
        self.out = log.data(1)
        self.work = self.out.with_name(f".{self.out.name}.tmp")
        self.names: list[str] = []
        start, appeared, gone = time.monotonic(), 0.0, 0.0
        with self.start() as job:
            while job.process.poll() is None:
                if found := self.visible():
                    gone = time.monotonic() - start
                    appeared = appeared or gone
                self.names += sorted(found - {*self.names})
                time.sleep(0.0005)
            assert job.end() == 0, job.stderr
        self.began, self.seconds = appeared, gone - appeared
        self.expected = contents(self.out)
        self.put_back()

    def start(self) -> Job:
        return running(
            *("prepare", self.log.folder / "mine.toml", self.log.raw, self.out),
            *("--extend", self.log.data(0), "--lookback", "20000", "--test", "0.1", "--threads", "2"),
        )

    def visible(self) -> set[str]:
        try:
            return {path.relative_to(self.work).as_posix() for path in self.work.rglob("*") if path.is_file()}
        except FileNotFoundError:  # moved meanwhile
            return set()

    def put_back(self) -> None:
        """Take the output away under its name, so that it can be written again."""
        self.out.rename(self.out.with_name(f"done {time.monotonic_ns()}"))

    def kill_when(self, condition: Callable[[], bool]) -> str:
        """Kill the command as soon as a condition holds, and look at what it left; returns what that was."""
        with self.start() as job:
            while job.process.poll() is None and not condition():
                time.sleep(0.0002)
            job.process.kill()
            job.end()
            code = job.process.returncode
        assert code in (0, -9), job.stderr
        assert contents(self.log.data(0)) == self.parent
        assert contents(self.log.raw) == self.raw
        if self.out.exists():
            assert contents(self.out) == self.expected
            self.put_back()
            return "complete"
        assert code == -9
        return "absent"

    def finish(self) -> None:
        """The same command again, after a kill: byte for byte what it gives when it is left alone."""
        with self.start() as job:
            assert job.end() == 0, job.stderr
        assert contents(self.out) == self.expected
        assert contents(self.log.data(0)) == self.parent
        assert not self.work.exists()
        self.put_back()


def contents(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(tmp_path_factory.mktemp("kills"))


def after(killed: Killed, name: str) -> Callable[[], bool]:
    return (killed.work / name).exists


def at(seconds: float) -> Callable[[], bool]:
    moment = time.monotonic() + seconds
    return lambda: time.monotonic() >= moment


def test_killed_at_some_moments(killed: Killed) -> None:
    """While it reads, while the new generation is half written, and before the folder is renamed."""
    for name in ("lock", "data/encoder/item.seen.npy", killed.names[-1]):
        print(name, killed.kill_when(after(killed, name)))
    killed.finish()


@pytest.mark.slow
def test_killed_after_every_file(killed: Killed) -> None:
    """Each one that was visible, as soon as it is there; what was killed before it is tidied up by the next start."""
    found = []
    for name in killed.names:
        found.append(killed.kill_when(after(killed, name)))
        print(name, found[-1], flush=True)
        killed.finish()
    assert found.count("absent") > len(found) / 2


@pytest.mark.slow
def test_killed_at_random_moments(killed: Killed) -> None:
    """From before the hidden folder is there until after it is gone."""
    rng = random.Random(0)
    moments = [rng.uniform(killed.began - 0.2, killed.began + 1.1 * killed.seconds) for _ in range(KILLS)]
    for moment in moments:
        print(f"{moment:.3f} s", killed.kill_when(at(moment)), flush=True)
        if rng.random() < 0.5:
            killed.finish()
    killed.finish()
