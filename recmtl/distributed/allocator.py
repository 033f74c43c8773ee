"""How the C library hands out host memory during training."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_BLOCK = 32 * 2**20
"""glibc accepts no larger threshold."""


def keep_freed_memory() -> None:
    """Let freed blocks of up to 32 MiB stay with the process, for the next step to use again.

    By itself glibc returns the large ones to the system at once, and every step's activations and gradients pay for new
    pages, filled with zeros: a tenth of a step on two cores. Elsewhere than with glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
