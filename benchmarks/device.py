"""What a device was doing: how busy a GPU was, how much memory a process took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from common import synchronize
from torch.autograd import DeviceType

from recmtl.training.results import peak_resident


def profile(run: Callable[[], object], device: torch.device, trace: Path | None = None) -> float | None:
    """Run something under torch.profiler.

    Args:
        run: to be called once.
        device: where it runs.
        trace: where to write a trace, for chrome://tracing or Perfetto; None: nowhere.

    Returns:
        The part of the time in which the GPU ran at least one kernel or copy; None: there is no GPU.
    """
    synchronize(device)
    began = time.perf_counter()
    with torch.profiler.profile() as profiler:
        run()
        synchronize(device)
        seconds = time.perf_counter() - began
    if trace:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
        slowest = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
        print(profiler.key_averages().table(sort_by=slowest, row_limit=25, max_name_column_width=60))
    if device.type != "cuda":
        return None
    # Ranges that the host names are shown on the GPU's timeline too, with the gaps in them.
    on_gpu = [e for e in profiler.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return covered((event.time_range.start, event.time_range.end) for event in on_gpu) / 1e6 / seconds


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans (start, end), which may overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def peak_bytes(device: torch.device) -> int:
    """Peak of this process so far: of the GPU's allocator, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident()
