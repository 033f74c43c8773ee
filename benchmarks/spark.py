"""What `recmtl prepare --engine spark` takes beside DuckDB alone, on one machine and the same cores.

    python benchmarks/spark.py --events 10000000 --cores 2

Makes synthetic MerRec events (not timed) and prepares them with the recipe `merrec` by both engines, one after the
other, Spark with all its processes on this machine (``local[CORES]``). Both write the same data, which is checked.
CPU time and memory are those of all processes that a command starts, sampled: Java's, and Python's of the tasks. A page
that several processes share counts once.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import tyro
from common import RESULTS, machine, markdown_table, write_results

from recmtl.schema import Dataset
from recmtl.synthetic.synthesize import synthesize

SAMPLE_SECONDS = 0.25


@dataclass
class Options:
    """Measure both engines."""

    events: int = 1_000_000
    """Number of events."""
    cores: int = 2
    """Threads of DuckDB, and tasks of Spark at a time."""
    memory_limit: str = "2GB"
    """As of `recmtl prepare`: of DuckDB's process, and of every task of Spark."""
    raw: Path | None = None
    """Events of an earlier `recmtl synth merrec`; none: they are made."""
    work: Path | None = None
    """Folder for events and output, removed afterwards; none: a temporary one."""
    out: Path = RESULTS
    """Folder for the results."""


@dataclass
class TreeUsage:
    """What a command and all processes that it started took."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    """Of all together."""
    java_peak_bytes: int = 0
    """Of Java's processes together."""
    process_peak_bytes: int = 0
    """Of the largest process of Python."""

    def __post_init__(self) -> None:
        self._cpu: dict[psutil.Process, float] = {}

    def sample(self, root: psutil.Process) -> None:
        """Look at the processes that there are, also at those whose parent has ended."""
        try:
            now = {root, *root.children(recursive=True)}
        except psutil.NoSuchProcess:
            now = set()
        total = java = 0
        for process in now | self._cpu.keys():
            try:
                times, memory = process.cpu_times(), process.memory_full_info().pss
                name = process.name()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            self._cpu[process] = times.user + times.system
            total += memory
            if name == "java":
                java += memory
            else:
                self.process_peak_bytes = max(self.process_peak_bytes, memory)
        self.peak_bytes, self.java_peak_bytes = max(self.peak_bytes, total), max(self.java_peak_bytes, java)
        self.cpu_seconds = sum(self._cpu.values())


def run(*words: object) -> TreeUsage:
    """Run `recmtl`, and sample it.

    Raises:
        SystemExit: it failed; what it said was printed.
    """
    used, began = TreeUsage(), time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "recmtl", *map(str, words)], stdout=subprocess.DEVNULL)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        used.sample(root)
        time.sleep(SAMPLE_SECONDS)
    used.seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"failed: {' '.join(map(str, words))}")
    return used


def line(engine: str, used: TreeUsage, events: int) -> tuple[object, ...]:
    """A line of the table."""
    gigabytes = [size / 1e9 for size in (used.peak_bytes, used.java_peak_bytes, used.process_peak_bytes)]
    return (engine, used.seconds, used.cpu_seconds, 1e6 * used.cpu_seconds / events, *gigabytes)


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        raw = options.raw or folder / "raw"
        if options.raw is None:
            synthesize(raw, options.events)
        limit = ("--memory-limit", options.memory_limit)
        first = ("prepare", "merrec", raw)
        duck = run(*first, folder / "duckdb", *limit, "--threads", options.cores)
        spark = run(*first, folder / "spark", *limit, "--engine", "spark", "--master", f"local[{options.cores}]")
        one, other = (Dataset.load(folder / engine) for engine in ("duckdb", "spark"))
        assert one == other, "the engines differ"
    header = ("engine", "s", "CPU s", "CPU µs per event", "peak GB", "of Java", "largest Python")
    table = markdown_table(header, [line("duckdb", duck, options.events), line("spark", spark, options.events)])
    results = {"machine": place, "events": options.events, "cores": options.cores}
    results |= {"memory_limit": options.memory_limit, "duckdb": asdict(duck), "spark": asdict(spark)}
    body = f"{options.events:,} events, {options.cores} cores, memory limit {options.memory_limit}:\n\n{table}"
    write_results(options.out, "spark", f"merrec-{options.events / 1e6:g}m", results, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
