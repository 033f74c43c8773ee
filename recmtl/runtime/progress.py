"""Shows which stage of a long job is running and how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Advance = Callable[[float], None]
POLL_SECONDS = 0.2


class Stages:
    """Stages of a job on stderr: bars on a terminal, one line a stage elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Stages:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def note(self, text: str) -> None:
        """Say in one line what the user should look at."""
        self.console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """A stage of `total` units; what it yields takes the number that are done."""
        task = self.progress.add_task(name, total=total)
        start = time.perf_counter()
        yield lambda done: self.progress.update(task, completed=done)
        self.progress.update(task, completed=total)
        if not self.console.is_terminal:
            self.console.print(f"{name}: {time.perf_counter() - start:.1f} s", highlight=False)


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
