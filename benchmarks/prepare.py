"""How much CPU time `recmtl prepare` takes beside the bare query, and whether it keeps to its memory limit.

    python benchmarks/prepare.py --events 1000000 10000000 50000000 --memory-limit 4GB

Makes synthetic MerRec events (not timed) and prepares them with the recipe `merrec`. Beside it DuckDB alone runs the
recipe's query, Parquet to Parquet, with as many threads and as much memory. Both are processes of their own, start
included, one after the other; ratios are medians over such turns. Wanted: at most 2, and as much per event of many
events as of few. Then come rows with many ids, under a smaller limit: peak resident memory is wanted within it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from common import RESULTS, machine, markdown_table, write_results
from usage import Usage, usage
from wide_rows import WIDE_ROWS, write_raw, write_recipe

from recmtl.data.prepare.duck import parse_size
from recmtl.data.recipe import PACKAGED
from recmtl.synthetic.synthesize import synthesize

BARE_QUERY = Path(__file__).with_name("bare_query.py")


@dataclass
class Options:
    """Measure preparing."""

    events: tuple[int, ...] = (1_000_000,)
    """Numbers of events."""
    wide: tuple[str, ...] = tuple(WIDE_ROWS)
    """Cases of many ids a row, as benchmarks/wide_rows.py names them."""
    wide_rows: int | None = None
    """Rows of such a case; none: as many as it says itself."""
    rounds: int = 1
    """Turns of preparing and the bare query."""
    memory_limit: str = "4GB"
    """As of `recmtl prepare`, for events."""
    wide_memory_limit: str = "1GB"
    """The same for rows of many ids."""
    threads: int = os.cpu_count() or 1
    """As of `recmtl prepare`."""
    work: Path | None = None
    """Folder for events and output, removed afterwards; none: a temporary one. 50 M events take 20 GB."""
    out: Path = RESULTS
    """Folder for the results."""


def prepare(recipe: str | Path, raw: Path, out: Path, memory_limit: str, threads: int) -> Usage:
    """Prepare in a process; what it wrote is removed."""
    words = ("prepare", recipe, raw, out, "--memory-limit", memory_limit, "--threads", threads)
    used = usage(sys.executable, "-m", "recmtl", *words)
    shutil.rmtree(out)
    return used


def query(raw: Path, out: Path, memory_limit: str, threads: int) -> Usage:
    """Run the bare query in a process; what it wrote is removed."""
    words = (PACKAGED / "merrec.toml", raw, out, "--threads", threads, "--memory-limit", memory_limit)
    used = usage(sys.executable, BARE_QUERY, *words)
    out.unlink()
    return used


def of_events(events: int, folder: Path, options: Options) -> dict[str, Any]:
    """Measure one number of events."""
    raw, limit, threads = folder / "raw", options.memory_limit, options.threads
    synthesize(raw, events)
    prepared, bare = [], []
    for _ in range(options.rounds):
        prepared.append(prepare("merrec", raw, folder / "out", limit, threads))
        bare.append(query(raw, folder / "bare.parquet", limit, threads))
    ratios = [one.cpu_seconds / other.cpu_seconds for one, other in zip(prepared, bare, strict=True)]
    return {
        "events": events,
        "ratio": median(ratios),
        "prepare": list(map(asdict, prepared)),
        "query": list(map(asdict, bare)),
    }


def of_wide(name: str, folder: Path, options: Options) -> dict[str, Any]:
    """Measure one case of many ids a row."""
    wide = WIDE_ROWS[name]
    wide = replace(wide, rows=options.wide_rows or wide.rows)
    write_raw(wide, folder / "raw")
    write_recipe(wide, folder / "wide.toml")
    used = prepare(folder / "wide.toml", folder / "raw", folder / "out", options.wide_memory_limit, options.threads)
    return {"case": wide.label, "rows": wide.rows, **asdict(used)}


def in_folder(
    measure: Callable[[Any, Path, Options], dict[str, Any]], what: object, options: Options
) -> dict[str, Any]:
    """Measure in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        found = measure(what, Path(folder), options)
    print(found, flush=True)
    return found


def table_of_events(runs: list[dict[str, Any]], limit: int) -> str:
    """A line a number of events."""
    lines = []
    for run in runs:
        cpu = {side: median(used["cpu_seconds"] for used in run[side]) for side in ("prepare", "query")}
        seconds = median(used["seconds"] for used in run["prepare"])
        peak = max(used["peak_bytes"] for used in run["prepare"])
        of_event = [1e6 * cpu[side] / run["events"] for side in ("prepare", "query")]
        lines.append((run["events"], run["events"] / seconds, *of_event, run["ratio"], peak / 1e9, peak / limit))
    header = ("events", "events/s", "CPU µs per event", "bare query", "ratio", "peak GB", "peak / limit")
    return markdown_table(header, lines)


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    events = [in_folder(of_events, number, options) for number in sorted(options.events)]
    wide = [in_folder(of_wide, name, options) for name in options.wide]
    limit = parse_size(options.wide_memory_limit)
    lines = [
        (run["case"], run["cpu_seconds"], run["cpu_seconds"] / run["rows"] * 1e6, peak / 1e9, peak / limit)
        for run, peak in ((run, run["peak_bytes"]) for run in wide)
    ]
    parts = [f"{options.threads} threads."]
    if events:
        parts.append(
            f"Memory limit {options.memory_limit}:\n\n{table_of_events(events, parse_size(options.memory_limit))}"
        )
    if wide:
        header = ("rows", "CPU s", "CPU µs per row", "peak GB", "peak / limit")
        parts.append(f"Memory limit {options.wide_memory_limit}:\n\n{markdown_table(header, lines)}")
    limits = {"memory_limit": options.memory_limit, "wide_memory_limit": options.wide_memory_limit}
    results = {"machine": place, "threads": options.threads, **limits, "runs": events, "wide": wide}
    write_results(options.out, "prepare", "merrec" if events else "wide", results, "\n\n".join(parts))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
