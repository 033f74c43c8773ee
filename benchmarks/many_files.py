"""What the reader takes of a split in thousands of files: memory, the time to the first batch, files open at a time.

    python benchmarks/many_files.py --files 2000 --file-rows 100000

The rows are MerRec-shaped, with 18 features. Only `--different` files are written; the others are hard links to them
under names of their own, so that 200 M rows take the disk and the page cache of a few files: footers, plan and order of
rows are those of as many files, while reading says nothing of a disk. A process of its own reads, as each rank does,
and times are counted from its start: Python and PyTorch are among them, and memory is that of the whole process. It
looks at all footers by itself, as with one rank; several ranks share them out.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import tyro
from common import RESULTS, machine, markdown_table, write_results
from workload import write_workload

from recmtl.data.read.reader import Reader
from recmtl.schema import ROW_GROUP_ROWS, Dataset

EMBEDDING_ROWS = 1_000_000


@dataclass
class Options:
    """Measure the reader on many files."""

    files: int = 2000
    """Files of the training split."""
    file_rows: int = 100_000
    """Rows of each."""
    different: int = 10
    """Files that are written; the others are links to them."""
    batch_size: int = 4096
    """Rows in a global batch."""
    streams: int = 64
    """As `reader.streams`."""
    ranks: tuple[int, ...] = (1, 8)
    """Numbers of ranks; the first rank is measured."""
    threads: int = 1
    """As `reader.threads`."""
    batches: int = 2000
    """Batches to read."""
    out: Path = RESULTS
    """Folder for the results."""


def write_files(folder: Path, options: Options) -> Dataset:
    """Write the prepared folder."""
    source = folder / "source"
    dataset = write_workload(source, options.different * options.file_rows, EMBEDDING_ROWS)
    rows = pq.read_table(source / "train")
    train = folder / "data" / "train"
    train.mkdir(parents=True)
    for number in range(options.files):
        path, first = train / f"part-{number:05d}.parquet", number % options.different
        if number < options.different:
            part = rows.slice(first * options.file_rows, options.file_rows)
            pq.write_table(part, path, row_group_size=ROW_GROUP_ROWS, compression="none", use_dictionary=False)
        else:
            os.link(train / f"part-{first:05d}.parquet", path)
    dataset = replace(dataset, rows={"train": options.files * options.file_rows})
    dataset.save(folder / "data")
    return dataset


def read(data: Path, options: Options, ranks: int, started: float, answer: Connection) -> None:
    """Read batches in this process, which has done nothing else; send what it took."""
    process = psutil.Process()
    bare, imported = process.memory_info().rss, time.time()
    dataset = Dataset.load(data)
    reader = Reader(
        data,
        dataset,
        "train",
        dataset.tasks,
        batch_size=options.batch_size,
        streams=options.streams,
        world_size=ranks,
        shuffle=True,
        threads=options.threads,
    )
    looked, after_look = time.time(), process.memory_info().rss
    batches = reader.batches(0, 0, options.batches)
    next(batches)
    first = time.time()
    most_open, peak, rows, cpu = open_files(data), process.memory_info().rss, 0, time.process_time()
    for number, batch in enumerate(batches):
        rows += batch.rows
        if number % 16 == 0:
            most_open = max(most_open, open_files(data))
            peak = max(peak, process.memory_info().rss)
    answer.send(
        {
            "ranks": ranks,
            "seconds_to_first_batch": first - started,
            "seconds_of_imports": imported - started,
            "seconds_of_footers": looked - imported,
            "bare_bytes": bare,
            "bytes_after_footers": after_look,
            "peak_bytes": peak,
            "open_files": most_open,
            "rows_per_cpu_second": rows / (time.process_time() - cpu),
        }
    )


def open_files(folder: Path) -> int:
    """Files of a folder that this process has open."""
    links = Path("/proc/self/fd").iterdir()
    return sum(str(folder) in str(link.readlink()) for link in links if link.is_symlink())


def measure(data: Path, options: Options, ranks: int) -> dict[str, Any]:
    """What `read` sends."""
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe(duplex=False)
    process = spawning.Process(target=read, args=(data, options, ranks, time.time(), sender))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        raise SystemExit("the reader ended early") from None
    process.join()
    return found


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_files(Path(folder), options)
        results = [measure(Path(folder) / "data", options, ranks) for ranks in options.ranks]
    header = ("ranks", "first batch after s", "of it footers", "peak MB", "bare process", "open files", "rows/CPU s")
    body = f"{dataset.rows['train']:,} rows in {options.files:,} files, of which {options.different} are different.\n\n"
    body += markdown_table(
        header,
        [
            (
                found["ranks"],
                found["seconds_to_first_batch"],
                found["seconds_of_footers"],
                found["peak_bytes"] / 1e6,
                found["bare_bytes"] / 1e6,
                found["open_files"],
                found["rows_per_cpu_second"],
            )
            for found in results
        ],
    )
    write_results(options.out, "many_files", f"{options.files}", {"machine": place, "runs": results}, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
