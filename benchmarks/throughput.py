"""Examples a second of training, and how close the pipeline comes to what its parts allow.

    python benchmarks/throughput.py merrec_mmoe merrec_aitm --batch-sizes 1024 4096 16384 --ranks 1 2

Every case (a preset, a batch size, a number of ranks) runs in processes of its own, benchmarks/parts.py, which says
what the parts are. The limit of a step is what its parts need that cannot be done at once:

    on the CPU    their sum, in CPU time: they share the cores
    on a GPU      the larger of reading, which the host does beside it, and the rest, which is one queue of kernels

`of the limit` is the limit over what the pipeline takes. Wanted: 0.9. Alone, a part has the caches for itself: the bare
step beside it says what a step takes when its parts follow each other.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from common import RESULTS, Timing, machine, markdown_table, write_results
from variants import names
from workload import write_workload

from recmtl.schema import Dataset

WANTED = 0.9
ON_THE_PATH = ("lookup and update", "dense", "all-reduce")
"""What a step does beside reading; the all-to-all is part of looking up."""


@dataclass
class Options:
    """Measure training."""

    variants: tyro.conf.Positional[tuple[str, ...]] = ("merrec_mmoe",)
    """Presets or TOML files, each with settings of its own or none: `NAME:key=value:key=value`."""
    batch_sizes: tuple[int, ...] = (4096,)
    """Rows in a global batch."""
    ranks: tuple[int, ...] = (1,)
    """Numbers of ranks on this machine."""
    data: Path | None = None
    """Prepared folder; none: one in MerRec's shape with `embedding_rows`."""
    examples: int = 1_000_000
    """Training rows to make."""
    embedding_rows: int = 7_000_000
    """Rows of all embedding tables together, one copy each."""
    rounds: int = 5
    """Turns; medians are reported."""
    steps: int = 10
    """Steps of a turn."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 0
    """Threads of each rank's step; 0: the rank's share of the cores."""
    traces: Path | None = None
    """Folder for a trace of every case, for chrome://tracing or Perfetto."""
    out: Path = RESULTS
    """Folder for the results."""


def run(options: Options, data: Path, variant: str, batch_size: int, ranks: int) -> dict[str, Any]:
    """What benchmarks/parts.py finds in a case."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "case.json"
        settings: list[object] = ["--data", data, "--json", found, "--batch-size", batch_size]
        settings += ["--rounds", options.rounds, "--steps", options.steps]
        settings += ["--device", options.device, "--threads", options.threads]
        if options.traces:
            settings += ["--trace", options.traces / f"{names((variant,))}-{batch_size}-{ranks}.json"]
        threads = str(options.threads or max(1, (os.cpu_count() or 1) // ranks))
        launch = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost", "--nproc-per-node", ranks]
        script = Path(__file__).with_name("parts.py")
        subprocess.run(
            [sys.executable, *map(str, [*launch, script, variant, *settings])],
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)},
            check=True,
        )
        return json.loads(found.read_text())


def evaluate(case: dict[str, Any]) -> dict[str, Any]:
    """What a case comes to: medians, the limit and what sets it."""
    timings: dict[str, list[Timing]] = case["seconds_and_cpu_seconds"]
    kind = 0 if case["device"] == "cuda" else 1
    parts = {name: median(took[kind] for took in values) for name, values in timings.items()}
    path = {name: parts[name] for name in ON_THE_PATH if name in parts}
    if case["device"] == "cuda":
        limits = {"read": parts["read"], " + ".join(path): sum(path.values())}
        slowest = max(limits, key=limits.__getitem__)
        limit = limits[slowest]
    else:
        path["read"] = parts["read"]
        slowest = max(path, key=path.__getitem__)
        limit = sum(path.values())
    return {
        **case,
        "examples_per_second": case["batch_size"] / median(clock for clock, _ in timings["pipeline"]),
        "of_the_limit": limit / parts["pipeline"],
        "slowest": slowest,
        "milliseconds": {name: 1000 * median(clock for clock, _ in values) for name, values in timings.items()},
        "cpu_milliseconds": {name: 1000 * median(cpu for _, cpu in values) for name, values in timings.items()},
    }


def summary(cases: list[dict[str, Any]]) -> str:
    """A line a case."""
    header = (
        "preset",
        "batch",
        "ranks",
        "examples/s",
        "ms",
        "CPU ms",
        "of the limit",
        "slowest part",
        "GB",
        "GPU busy",
    )
    lines = []
    for case in cases:
        busy = "–" if case["busy"] is None else f"{case['busy']:.0%}"
        times = case["milliseconds"]["pipeline"], case["cpu_milliseconds"]["pipeline"]
        place = case["variant"], case["batch_size"], case["ranks"]
        rest = case["of_the_limit"], case["slowest"], case["peak_bytes"] / 1e9, busy
        lines.append((*place, case["examples_per_second"], *times, *rest))
    return markdown_table(header, lines)


def parts_table(cases: list[dict[str, Any]]) -> str:
    """The parts of every case in ms, with CPU ms in brackets."""
    columns = list(dict.fromkeys(name for case in cases for name in case["milliseconds"]))
    lines = []
    for case in cases:
        cells = [
            f"{case['milliseconds'][name]:.3g} ({case['cpu_milliseconds'][name]:.3g})"
            if name in case["milliseconds"]
            else "–"
            for name in columns
        ]
        lines.append((case["variant"], case["batch_size"], case["ranks"], *cells))
    return markdown_table(("preset", "batch", "ranks", *columns), lines)


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder) / "data"
        if options.data is None:
            write_workload(data, options.examples, options.embedding_rows)
        dataset = Dataset.load(data)
        each = itertools.product(options.variants, options.batch_sizes, options.ranks)
        cases = [evaluate(run(options, data, *case)) for case in each]
    rows = sum(table.rows for table in dataset.tables)
    body = "\n\n".join(
        [
            f"{len(dataset.features)} features, {dataset.rows['train']:,} examples, {rows:,} embedding rows a copy, "
            f"{cases[0]['threads']} threads on the first case's ranks; "
            f"medians of {options.rounds} turns of {options.steps} steps.",
            summary(cases),
            "Milliseconds a batch on the first rank, in brackets CPU milliseconds of all ranks:",
            parts_table(cases),
            f"Wanted of the limit: {WANTED}.",
        ]
    )
    results = {"machine": place, "embedding_rows": rows, "examples": dataset.rows["train"], "cases": cases}
    write_results(options.out, "throughput", names(options.variants), results, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
