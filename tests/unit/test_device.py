"""benchmarks/device.py: how busy a device was."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import device


def test_spans_that_overlap_count_once() -> None:
    assert device.covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.75)]) == 4.0
    assert device.covered([]) == 0.0


def test_a_profile_is_written_and_says_nothing_of_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    trace = tmp_path / "traces" / "sleep.json"
    assert device.profile(lambda: time.sleep(0.01), torch.device("cpu"), trace) is None
    assert json.loads(trace.read_text())["traceEvents"]
