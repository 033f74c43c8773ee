"""What a run tells the world: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from recmtl.errors import UserError
from recmtl.metrics.names import Values
from recmtl.runtime.storage import discard, exists, open_append, os_errors, publish, read_text, write_whole


class Tracker:
    """Writes metrics of a run; does nothing on ranks other than the first.

    Args:
        run: the run folder.
        enabled: this is rank 0.
        tensorboard: write TensorBoard events too.
        step: the step that the run starts from; later lines of an interrupted run are dropped.
        check_held: raises UserError if this process may no longer write to the folder.

    Raises:
        UserError: a file cannot be written; so do the methods.
    """

    def __init__(
        self,
        run: Path,
        *,
        enabled: bool,
        tensorboard: bool,
        step: int,
        check_held: Callable[[], None] = lambda: None,
    ) -> None:
        self.enabled, self._check_held = enabled, check_held
        self.console = Console(stderr=True)
        self._events: Any = None
        if not enabled:
            return
        self._path = path = run / "metrics.jsonl"
        with os_errors(path):
            kept = [line for line in read_text(path).splitlines() if _step(line) <= step] if exists(path) else []
            write_whole(path, "".join(line + "\n" for line in kept))
            self._lines = open_append(path)
        if tensorboard:
            from recmtl.training.events import Events  # TensorBoard takes its time to import

            with os_errors(run / "tensorboard"):
                self._events = Events(run / "tensorboard", step)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and a point of every number in it."""
        if not self.enabled:
            return
        with os_errors(self._path):
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
            self._lines.flush()
        if self._events:
            with os_errors(self._events.path):
                self._events.add(step, {name: v for name, v in values.items() if isinstance(v, int | float)})

    def log_metrics(self, step: int, split: str, metrics: dict[str, Values], **values: Any) -> None:
        """As `log`, the numbers measured on a split as ``split/task/name``, and `values`; lists are in the results."""
        flat = {
            f"{split}/{task}/{name}": value
            for task, found in metrics.items()
            for name, value in found.items()
            if not isinstance(value, list)
        }
        self.log(step, {**values, **flat})

    def describe(self, step: int, config: str) -> None:
        """Show a configuration, in TOML, in TensorBoard."""
        if self._events:
            with os_errors(self._events.path):
                self._events.add_text(step, "config.toml", f"```toml\n{config}```\n")

    def publish(self) -> None:
        """Let others see what was written so far; a run that goes on from a checkpoint goes on with its lines."""
        if self.enabled:
            self._check_held()
            with os_errors(self._path):
                publish(self._lines)
            if self._events:
                with os_errors(self._events.path):
                    self._events.publish()

    def say(self, text: str) -> None:
        """A line for the user."""
        if self.enabled:
            self.console.print(text, highlight=False, soft_wrap=True)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.enabled:
            return
        try:
            self._check_held()
        except UserError:
            discard(self._lines)
            if self._events:
                self._events.discard()
            if error is None:
                raise
        else:
            with os_errors(self._path):  # writes what a full disk has refused before
                self._lines.close()
            if self._events:
                with os_errors(self._events.path):
                    self._events.close()


def _step(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return 2**63  # a line that a crash cut off
