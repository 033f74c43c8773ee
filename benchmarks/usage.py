"""CPU time and memory of a command, its start included.

Run as a program it starts the command and prints what it took. It is a small process of its own because Linux counts
the memory of the process that starts another as the other's, too.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    seconds: float
    """By the clock."""
    cpu_seconds: float
    """Of user and system, over all threads."""
    peak_bytes: int
    """The most memory that was resident, pages of mapped files included."""


def usage(*command: object) -> Usage:
    """Run a command; it must not start processes that outlive it.

    Raises:
        SystemExit: it failed; what it said was printed.
    """
    words = list(map(str, command))
    found = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
    if found.returncode:
        sys.exit(f"failed: {' '.join(words)}")
    return Usage(**json.loads(found.stdout))


if __name__ == "__main__":
    began = time.perf_counter()
    code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Linux counts the peak in KiB.
    used = Usage(time.perf_counter() - began, spent.ru_utime + spent.ru_stime, spent.ru_maxrss * 1024)
    print(json.dumps(vars(used)))
    sys.exit(code)
