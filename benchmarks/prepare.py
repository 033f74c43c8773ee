"""How fast `recmtl prepare` is on MerRec-shaped events, and whether it keeps to its memory limit.

    python benchmarks/prepare.py --events 1000000 10000000 50000000 --memory-limit 4GB

Makes synthetic events (not timed), prepares them in a fresh process with the recipe `merrec`, and gives for each number
of events: events/s, CPU time an event, peak resident memory and what was written to disk on the way. The last ratio is
the rate at the largest number over that at the smallest: 1 is linear. CPU time shows it where others use the cores.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro
from common import RESULTS, machine, markdown_table, write_results

from recmtl.data.duck import size
from recmtl.data.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.data.synthetic import synthesize

SAMPLE_SECONDS = 0.02


@dataclass
class Options:
    """Measure preparing."""

    events: tuple[int, ...] = (1_000_000,)
    """Numbers of events."""
    memory_limit: str = "4GB"
    """As of `recmtl prepare`."""
    threads: int = os.cpu_count() or 1
    """As of `recmtl prepare`."""
    work: Path | None = None
    """Folder for events and output, removed afterwards; none: a temporary one. 50 M events take 17 GB."""
    out: Path = RESULTS
    """Folder for the results."""


@contextmanager
def sampled(peak: list[int]) -> Iterator[None]:
    """Keep the largest resident size of this process in `peak`."""
    process, stop = psutil.Process(), threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def measure(raw: Path, out: Path, options: Options, report: Any) -> None:
    """Prepare in this process; send what it took to `report`."""
    process, peak = psutil.Process(), [0]
    start, cpu, written = time.perf_counter(), time.process_time(), process.io_counters().write_chars
    with sampled(peak):
        dataset = prepare(load_recipe("merrec"), raw, out, memory_limit=options.memory_limit, threads=options.threads)
    report.put(
        {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "peak_bytes": peak[0],
            "written_bytes": process.io_counters().write_chars - written,
            "output_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
            "rows": sum(dataset.rows.values()),
        }
    )


def run(events: int, folder: Path, options: Options) -> dict[str, Any]:
    """Measure one number of events."""
    raw = folder / "raw"
    synthesize(raw, events)
    # A fresh process: what making the events took is not in its peak.
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    child = context.Process(target=measure, args=(raw, folder / "out", options, report))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"prepare failed on {events} events")
    return {"events": events, **report.get()}


def main(options: Options) -> None:
    """Measure, print and write."""
    place, limit = machine(), size(options.memory_limit)
    runs = []
    for events in sorted(options.events):
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            runs.append(run(events, Path(folder), options))
        print(f"{events:,} events: {runs[-1]['seconds']:.0f} s", flush=True)
    rows = [
        (
            found["events"],
            found["events"] / found["seconds"],
            1e6 * found["cpu_seconds"] / found["events"],
            found["peak_bytes"] / 1e9,
            found["peak_bytes"] / limit,
            (found["written_bytes"] - found["output_bytes"]) / 1e9,
        )
        for found in runs
    ]
    first, last = rows[0], rows[-1]
    linear = {"by_clock": last[1] / first[1], "by_cpu_time": first[2] / last[2]}
    header = ("events", "events/s", "CPU µs an event", "peak GB", "peak / limit", "GB written on the way")
    body = (
        f"{options.threads} threads, memory limit {options.memory_limit}.\n\n{markdown_table(header, rows)}\n\n"
        f"Rate at {last[0]:,} over rate at {first[0]:,} events: {linear['by_clock']:.2f} by the clock, "
        f"{linear['by_cpu_time']:.2f} by CPU time."
    )
    results = {
        "machine": place,
        "memory_limit": options.memory_limit,
        "threads": options.threads,
        "linear": linear,
        "runs": runs,
    }
    write_results(options.out, "prepare", "merrec", results, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
