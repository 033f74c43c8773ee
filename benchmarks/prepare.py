"""How fast `recmtl prepare` is on MerRec-shaped events, and whether it keeps to its memory limit.

    python benchmarks/prepare.py --events 1000000 10000000 --memory-limit 4GB

Makes synthetic events (not timed), prepares them in a fresh process with the recipe `merrec`, and prints for each
number of events: events/s, their ratio to the target, peak resident memory and its ratio to the limit. The last line
is the rate at the largest number over that at the smallest: 1 is linear. One JSON file holds it all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import psutil

from recmtl.data.duck import size
from recmtl.data.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.data.synthetic import synthesize

TARGET_EVENTS_PER_SECOND = 500_000
SAMPLE_SECONDS = 0.02


def measure(raw: Path, out: Path, memory_limit: str, threads: int, report: Any) -> None:
    """Prepare in this process; send seconds, peak resident bytes and rows to `report`."""
    process, peak, stop = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    try:
        dataset = prepare(load_recipe("merrec"), raw, out, memory_limit=memory_limit, threads=threads)
    finally:
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        stop.set()
        watcher.join()
    report.put(
        {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak[0], "rows": sum(dataset.rows.values())}
    )


def run(events: int, folder: Path, memory_limit: str, threads: int) -> dict[str, float]:
    """Measure one number of events."""
    raw = folder / f"raw-{events}"
    synthesize(raw, events)
    # A fresh process: what making the events took is not in its peak.
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    child = context.Process(target=measure, args=(raw, folder / f"out-{events}", memory_limit, threads, report))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"prepare failed on {events} events")
    found = report.get()
    rate = events / found["seconds"]
    return {
        "events": events,
        "events_per_second": rate,
        "ratio_to_target": rate / TARGET_EVENTS_PER_SECOND,
        "ratio_of_peak_to_limit": found["peak_bytes"] / size(memory_limit),
        "cores_used": found["cpu_seconds"] / found["seconds"],
        **found,
    }


def main() -> None:
    """Measure every number of events, print a line for each, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--memory-limit", default="4GB")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("prepare.json"))
    args = parser.parse_args()
    results = []
    for events in sorted(args.events):
        with tempfile.TemporaryDirectory() as folder:
            results.append(run(events, Path(folder), args.memory_limit, args.threads))
        print(
            "{events:,} events: {events_per_second:,.0f} events/s ({ratio_to_target:.2f} × target), "
            "peak {peak_bytes:,} bytes ({ratio_of_peak_to_limit:.2f} × limit), {cores_used:.1f} cores".format(
                **results[-1]
            )
        )
    linearity = results[-1]["events_per_second"] / results[0]["events_per_second"]
    print(f"rate at {results[-1]['events']:,} over rate at {results[0]['events']:,} events: {linearity:.2f}")
    settings = {"memory_limit": args.memory_limit, "threads": args.threads, "duckdb": duckdb.__version__}
    args.out.write_text(json.dumps({**settings, "linearity": linearity, "runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
