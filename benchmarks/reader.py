"""Rows/s of the reader alone, on one core, beside what decoding and copying the same columns cost by themselves.

Batches are consumed in the thread that decodes them, on one core. The passes over the training split take turns, so
that noise of the machine hits all of them:

    copy     every row group's decoded columns are copied once, in memory
    decode   pyarrow decodes the same columns of every row group: the upper bound of any reader of these files
    reader   the reader as in training (shuffled), its cache empty: every row group is decoded
    again    the next epoch: row groups come from the cache as far as they fit

The targets are 1.5 M rows/s of `reader` for MerRec's 18 features, and 2 M rows/s for one list of 20 ids
(`--wide list`).
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from common import RESULTS, Timing, machine, markdown_table, write_results
from wide_rows import WIDE_ROWS, write_raw, write_recipe

from recmtl.data.prepare.prepare import prepare
from recmtl.data.read.parquet import ParquetSplit
from recmtl.data.read.reader import Reader
from recmtl.data.recipe import load_recipe
from recmtl.schema import Dataset, label_column
from recmtl.synthetic.synthesize import synthesize

TARGETS = {None: 1_500_000, "list": 2_000_000}
"""Rows/s on one core, of MerRec's rows and by the name of wide ones."""


@dataclass
class Options:
    """Measure the reader alone on one core."""

    data: Path | None = None
    """Prepared folder; none: one made from synthetic MerRec events."""
    events: int = 2_000_000
    """Synthetic events to make."""
    wide: str | None = None
    """Rows with many ids in their place, as benchmarks/wide_rows.py names them."""
    wide_rows: int = 1_000_000
    """How many of these."""
    batch_size: int = 4096
    """Rows in a batch."""
    rounds: int = 5
    """Times that every pass runs; medians are reported."""
    out: Path = RESULTS
    """Folder for the results."""


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data
        if data is None:
            data = Path(folder) / "data"
            make_data(Path(folder), options)
        use_one_core()
        dataset = Dataset.load(data)
        seconds = measure(data, dataset, options.batch_size, options.rounds)
    report(options, place, dataset, seconds)


def make_data(folder: Path, options: Options) -> None:
    """Prepare rows into the folder ``data`` in a folder."""
    if options.wide is None:
        synthesize(folder / "raw", options.events)
        prepare(load_recipe("merrec"), folder / "raw", folder / "data")
    else:
        wide = replace(WIDE_ROWS[options.wide], rows=options.wide_rows)
        write_raw(wide, folder / "raw")
        write_recipe(wide, folder / "wide.toml")
        prepare(load_recipe(str(folder / "wide.toml")), folder / "raw", folder / "data")


def use_one_core() -> None:
    """Keep this process to one core (where the system can) and its libraries to one thread."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def measure(data: Path, dataset: Dataset, batch_size: int, rounds: int) -> dict[str, list[Timing]]:
    """Times of every pass, by name, round by round. A round before them warms up the page cache."""
    seconds: dict[str, list[Timing]] = {name: [] for name in ("copy", "decode", "reader", "again")}
    columns = [f.name for f in dataset.features] + [label_column(task.name) for task in dataset.tasks]
    for epoch in range(rounds + 1):
        reader = Reader(data, dataset, "train", dataset.tasks, batch_size=batch_size, shuffle=True)
        times = {
            "copy": copy(reader.data),
            "decode": decode(reader.data, columns),
            "reader": consume(reader, 2 * epoch),
            "again": consume(reader, 2 * epoch + 1),
        }
        for name, value in times.items():
            if epoch:
                seconds[name].append(value)
    return seconds


def copy(split: ParquetSplit) -> Timing:
    """Time to copy as many bytes as all decoded rows have, a row group at a time."""
    sizes = np.diff(split.starts)
    ids = sum(feature.mean_length for feature in split.dataset.sparse_features)
    width = 4 * round(ids + split.width + len(split.tasks))
    source = np.ones((width, int(sizes.max())), np.int8)
    target = np.empty_like(source)
    began, cpu = time.perf_counter(), time.process_time()
    for size in sizes:
        target.ravel()[: width * size] = source.ravel()[: width * size]
    return time.perf_counter() - began, time.process_time() - cpu


def decode(split: ParquetSplit, columns: list[str]) -> Timing:
    """Time that pyarrow alone takes for the reader's columns."""
    began, cpu, rows = time.perf_counter(), time.process_time(), 0
    for path in split.files:
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                rows += file.read_row_group(group, columns=columns, use_threads=False).num_rows
    assert rows == split.rows
    return time.perf_counter() - began, time.process_time() - cpu


def consume(reader: Reader, epoch: int) -> Timing:
    """Time to read an epoch's batches, one after the other."""
    began, cpu, rows = time.perf_counter(), time.process_time(), 0
    for batch in reader.batches(epoch):
        rows += int((batch.weights > 0).sum())
    assert rows == reader.data.rows
    return time.perf_counter() - began, time.process_time() - cpu


def report(options: Options, place: dict, dataset: Dataset, seconds: dict[str, list[Timing]]) -> None:
    """Rates, ratios and how far the target is."""
    rows = dataset.rows["train"]
    rates, cpu_rates = (
        {name: rows / median(value[clock] for value in values) for name, values in seconds.items()} for clock in (0, 1)
    )
    share = median([a[0] / b[0] for a, b in zip(seconds["decode"], seconds["reader"], strict=True)])
    body = markdown_table(
        ("pass", "rows/s", "rows a CPU second", "of decode"),
        [(name, rate, cpu_rates[name], rate / rates["decode"]) for name, rate in rates.items()],
    )
    body += (
        f"\n\n{len(dataset.features)} features, {rows:,} rows, batch {options.batch_size:,}, one core; medians of "
        f"{options.rounds} rounds. The reader runs at {share:.2f} of decoding alone."
    )
    target = TARGETS.get(options.wide) if options.data is None else None
    if target:
        body += (
            f" It is at {rates['reader'] / target:.2f} of the target of {target:,} rows/s "
            f"({cpu_rates['reader'] / target:.2f} by CPU time: what it would be with the core to itself)."
        )
    results = {
        "machine": place,
        "rows": rows,
        "features": len(dataset.features),
        "batch_size": options.batch_size,
        "rows_per_second": rates,
        "rows_per_cpu_second": cpu_rates,
        "seconds_and_cpu_seconds": seconds,
        "reader_over_decode": share,
        "target_rows_per_second": target,
    }
    write_results(options.out, "reader", dataset.name, results, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
