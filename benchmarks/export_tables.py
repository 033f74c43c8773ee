"""Where an export's tables should lie: in ``model.pt2``, or beside it and mapped into memory.

    python benchmarks/export_tables.py --embedding-rows 7910000 --processes 1 4

MerRec's tables at their published sizes, dimension 32, float32. Processes start one after the other, open the model,
score 200 rows of random ids once and then wait, so that what all hold together can be read: the proportional set size,
in which a page that n processes share counts 1/n for each. Start-up is by the clock from opening on, imports left out;
the files are in the system's cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from common import RESULTS, machine, markdown_table, write_results
from exports import write_export
from workload import merrec_shaped, merrec_tables, table_sizes

from recmtl.inference.archive import load_graph
from recmtl.inference.exported import to_tensors
from recmtl.inference.signature import MODEL, StoredTable
from recmtl.inference.tables import open_table
from recmtl.schema import Dataset
from recmtl.training.export import random_inputs, save_graph
from recmtl.training.graph import ScoringGraph

ROWS = 200
PLACES = ("beside", "inside")


@dataclass
class Options:
    """What to compare."""

    preset: str = "mmoe"
    """Preset; its dimension is set to 32."""
    embedding_rows: int = 7_910_000
    """Rows of all tables together."""
    processes: tuple[int, ...] = (1, 4)
    """How many processes hold the model at once."""
    open_only: str = ""
    """For processes that this script starts: which of the two to open."""
    folder: Path | None = None
    """For processes that this script starts."""
    out: Path = RESULTS
    """Folder for the results."""


class WithTables(torch.nn.Module):
    """A scoring graph that holds its tables as buffers."""

    def __init__(self, graph: ScoringGraph, tables: dict[str, list[torch.Tensor]]) -> None:
        super().__init__()
        self.inner = graph
        for key, parts in tables.items():
            self.register_buffer(key, parts[0])
        self.keys = list(tables)

    def forward(self, ids: torch.Tensor, numeric: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As the graph, without lists."""
        return self.inner(ids, numeric, [], {key: [self.get_buffer(key)] for key in self.keys})


def shaped(options: Options) -> Dataset:
    """MerRec on paper."""
    return merrec_shaped(table_sizes(merrec_tables(), options.embedding_rows), 0)


def build(options: Options, folder: Path) -> None:
    """Write the model both ways."""
    export = write_export(folder, options.preset, options.embedding_rows)
    ids, numeric, _ = to_tensors(random_inputs(export.dataset, 7))
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({1: dynamic}, {0: dynamic})
    both = WithTables(export.graph, export.tables)
    whole = torch.export.export(both, (ids, numeric), dynamic_shapes=shapes, strict=False)
    save_graph(whole, folder / "inside.pt2")


def stored(dataset: Dataset, folder: Path) -> dict[str, list[torch.Tensor]]:
    """The tables, mapped."""
    of = [StoredTable(t.name, t.name, "", t.rows, 32, (f"{t.name}.npy",)) for t in dataset.tables]
    return {table.key: open_table(folder, table, "float32") for table in of}


def open_and_wait(options: Options, folder: Path) -> None:
    """Open the model, score once, say how long it took, and wait for a line."""
    dataset = shaped(options)
    ids, numeric, lists = to_tensors(random_inputs(dataset, ROWS))
    began = time.perf_counter()
    with torch.inference_mode():
        if options.open_only == "beside":
            load_graph(folder / MODEL)(ids, numeric, lists, stored(dataset, folder))
        else:
            load_graph(folder / "inside.pt2")(ids, numeric)
    print(time.perf_counter() - began, flush=True)
    sys.stdin.readline()


def proportional(pid: int) -> int:
    """Proportional set size of a process, bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def hold(options: Options, folder: Path, place: str, count: int) -> dict[str, float]:
    """Start processes one after the other; the slowest start-up in seconds, and what all hold in GB."""
    command = [sys.executable, __file__, "--open-only", place, "--folder", str(folder)]
    command += ["--embedding-rows", str(options.embedding_rows), "--preset", options.preset]
    started, seconds = [], []
    try:
        for _ in range(count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            started.append(process)
            assert process.stdout is not None
            seconds.append(float(process.stdout.readline()))
        return {"seconds": max(seconds), "gigabytes": sum(proportional(p.pid) for p in started) / 1e9}
    finally:
        for process in started:
            process.communicate("\n")


def main(options: Options) -> None:
    """Build, start, print and write."""
    if options.open_only:
        assert options.folder is not None
        return open_and_wait(options, options.folder)
    place = machine()
    with tempfile.TemporaryDirectory() as folder:
        build(options, Path(folder))
        found = {
            where: {count: hold(options, Path(folder), where, count) for count in options.processes} for where in PLACES
        }
    lines = [
        [where, count, values["seconds"], values["gigabytes"]]
        for where, by_count in found.items()
        for count, values in by_count.items()
    ]
    body = markdown_table(("tables", "processes", "slowest start-up s", "all hold GB"), lines)
    millions = f"{options.embedding_rows / 1e6:g}m"
    write_results(options.out, "export_tables", f"{options.preset}-{millions}", {"machine": place, **found}, body)
    print(json.dumps(found))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
