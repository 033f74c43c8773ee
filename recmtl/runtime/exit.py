"""How a process ends: one line that says why, and an exit code. Several ranks say one thing once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_USER_ERROR, BUG, INTERRUPTED, TERMINATED = 2, 1, 128 + signal.SIGINT, 128 + signal.SIGTERM
UNREAD = 128 + signal.SIGPIPE
"""Exit codes. `TERMINATED` is that of a process that SIGTERM ended: schedulers read it as worth another try."""
REFUSED = 1
"""Of `recmtl roll` while the newest day's model is refused."""

GRACE_SECONDS = 10.0
"""How long a rank keeps to itself what the first rank of its machine, or the one that failed first, will say. The
launcher ends it in that time, so that one line is left of many; without a launcher it speaks after that time."""

LIBC = ctypes.CDLL(None)
"""Loaded here: between a fork and the start of a program, loading a library may wait forever for another thread."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2)."""

_received: list[int] = []
_interruptions: list[int] = []
"""Signals that a handler took, and those of them for which it raised KeyboardInterrupt."""


def exit_process(message: str, code: int, *, after: float = 0.0) -> NoReturn:
    """End the process with a line on stderr, and at once: its process group would wait for the others forever.

    Args:
        message: the line; none: say nothing.
        code: the exit code.
        after: seconds in which the launcher may end this process before it says anything.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
    if message and after and signal.SIGTERM in _received:  # the launcher has ended this process already
        os._exit(code)
    time.sleep(after)
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def note_signal(number: int) -> None:
    """Remember a signal that a handler took."""
    _received.append(number)


def is_first_on_machine() -> bool:
    """Whether this process speaks for the ranks of its machine when all have the same to say."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def interrupt_on_signals() -> None:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that unfinished files are removed.

    Python runs a handler wherever the main thread happens to be, and libraries drop what it raises there: PyArrow, for
    one, while it looks for modules that need not be installed. `check_interrupted` raises it again.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        note_signal(number)
        _interruptions.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as shells have it for what runs in the background
        signal.signal(signal.SIGINT, handler)


def check_interrupted() -> None:
    """To be called now and then by whatever takes long.

    Raises:
        KeyboardInterrupt: this is the main thread, and a signal came whose KeyboardInterrupt did not arrive.
    """
    if _interruptions and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def end_with_parent() -> None:
    """Have the system end this process with SIGKILL when its parent ends, however that happens."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process at once: for waits outside Python, which handlers cannot cut short, with nothing to
    clean up.
    """
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def exit_interrupted() -> NoReturn:
    """End after a KeyboardInterrupt, with the code of the signal that it stands for."""
    if signal.SIGTERM in _received:
        exit_process("", TERMINATED)
    exit_process("interrupted" if is_first_on_machine() else "", INTERRUPTED)
