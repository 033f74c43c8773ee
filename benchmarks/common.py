"""What every benchmark does: say where it ran, print a table, write one JSON and one Markdown file."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from recmtl.runtime.versions import versions
from recmtl.runtime.warnings import silence_third_parties

silence_third_parties()

RESULTS = Path(__file__).resolve().parent / "results"
"""Where results go; only meaningful ones are committed."""


def hardware() -> str:
    """Short name of what the benchmark runs on: the GPU, or the CPU and the number of cores this process may use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0))}x {_cpu_model()}"


def _cpu_model() -> str:
    try:
        models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        models = []
    return re.sub(r"\((R|TM)\)|CPU|Processor", "", models[0]).strip() if models else "cpu"


def machine() -> dict[str, Any]:
    """Where and when a benchmark runs; call it first, so that the load is that of others."""
    return {
        "hardware": hardware(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "date": date.today().isoformat(),
        "command": command(sys.argv),
        "versions": versions(),
    }


def command(words: list[str]) -> str:
    """The command line that was started, without the folders in which it works and writes: others have their own."""
    folders = {"--out", "--work", "--raw", "--runs", "--export"}
    kept = [word for before, word in pairwise(["", *words]) if not {before, word} & folders]
    return shlex.join(["python", *kept])


Timing = tuple[float, float]
"""Seconds by the clock, and of CPU time over all threads, which other processes disturb less."""


def timing(run: Callable[[], object], times: int, device: torch.device) -> Timing:
    """What one of `times` calls takes, the device's work included."""
    synchronize(device)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        run()
    synchronize(device)
    return (time.perf_counter() - began) / times, (time.process_time() - cpu) / times


def ratios(of: Sequence[Timing], to: Sequence[Timing]) -> Timing:
    """How many times as long one takes as another, by the clock and by CPU time: medians over turns taken together."""
    clock, cpu = (median(a[kind] / b[kind] for a, b in zip(of, to, strict=True)) for kind in (0, 1))
    return clock, cpu


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers with thousands separators."""
    lines = [header, ["---"] * len(header), *([_shown(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def write_results(out: Path, benchmark: str, model: str, results: dict[str, Any], body: str) -> Path:
    """Write ``<benchmark>-<model>-<hardware>-<date>`` as .json and .md; print the Markdown.

    Args:
        out: folder, made where it isn't there.
        benchmark: the script's name.
        model: what was measured, such as a preset's name.
        results: everything measured, with `machine()` under "machine".
        body: the Markdown after the heading.

    Returns:
        The path without its suffix.
    """
    place = results["machine"]
    slug = re.sub(r"[^a-z0-9.]+", "_", place["hardware"].lower()).strip("_")
    path = out / f"{benchmark}-{model}-{slug}-{place['date']}"
    load = ", ".join(map(str, place["load_before"]))
    text = (
        f"# {benchmark}: {model}\n\n{place['hardware']}, {place['memory_gib']} GiB, {place['date']}, "
        f"load average before {load}\n\n```\n{place['command']}\n```\n\n{body}\n"
    )
    out.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".json").write_text(json.dumps({"benchmark": benchmark, **results}, indent=2) + "\n")
    path.with_name(path.name + ".md").write_text(text)
    print(f"\n{text}\nwritten to {path}.json and .md")
    return path
