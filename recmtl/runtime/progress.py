"""Shows which stage of a long job is running and how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from recmtl.runtime.exit import check_interrupted

PLAIN_SECONDS = 5.0
"""Between two lines of a stage where there is no terminal to draw a bar on."""
POLL_SECONDS = 0.2


class Advance(Protocol):
    """Says how far a stage is."""

    def __call__(self, done: float, note: str | None = None) -> None:
        """So many units are done in all; `note` replaces what is shown beside them.

        Raises:
            KeyboardInterrupt: the process was asked to end.
        """


class Progress:
    """Stages of a job on stderr: bars on a terminal; elsewhere, of stages that take long, a line now and then.

    Args:
        enabled: show anything; of several ranks only the first does.
        timed: where there is no terminal, say of every stage that is done how long it took.
    """

    def __init__(self, *, enabled: bool = True, timed: bool = True) -> None:
        self.console = Console(stderr=True)
        self.plain = enabled and not self.console.is_terminal
        self.timed = self.plain and timed
        self.bars = Bars(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not enabled or self.plain,
        )

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def note(self, text: str) -> None:
        """Say in one line what the user should look at."""
        self._print(f"note: {text}")

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0, unit: str = "") -> Iterator[Advance]:
        """A stage of `total` units, of which `done` are done already; yields what takes the number that are done."""
        began = shown = time.monotonic()
        first, said = done, ""
        task = self.bars.add_task(name, total=total, completed=done, note="")

        def advance(done: float, note: str | None = None) -> None:
            nonlocal shown, said
            check_interrupted()
            said = said if note is None else note
            self.bars.update(task, completed=done, note=said)
            now = time.monotonic()
            if self.plain and now - shown >= PLAIN_SECONDS and done > first:
                shown = now
                left = (now - began) / (done - first) * (total - done)
                parts = (name, f"{unit} {done:.0f}/{total}".strip(), said, f"{left:.0f} s left")
                self._print("  ".join(filter(None, parts)))

        yield advance
        self.bars.update(task, completed=total)
        if self.timed:
            self._print(f"{name}: {time.monotonic() - began:.1f} s")

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def polled(value: Callable[[], float], advance: Advance) -> Iterator[None]:
    """Call `advance` with `value()` every now and then, from another thread."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            advance(max(0.0, value()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
