"""Footers of raw files: none stays in memory for longer than a few files more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS, ROW_GROUPS, FILES = 60, 60, 150
SCRIPT = """
import resource, sys
from pathlib import Path

import duckdb
from recmtl.data.prepare.footers import first_beyond, read_schemas

files = sorted(Path(sys.argv[1]).glob("*.parquet"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
[schema] = read_schemas(duckdb.connect(), files)
assert len(schema.files) == len(files) and first_beyond(files, 0, 100) is None
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_many_files_with_large_footers_take_the_memory_of_a_few(tmp_path: Path):
    """All 150 take .8 GB where they are kept. It is a process of its own, whose peak nobody else has raised."""
    table = pa.table({f"column {number}": np.arange(10) for number in range(COLUMNS)})
    with pq.ParquetWriter(tmp_path / "0.parquet", table.schema) as file:
        for _ in range(ROW_GROUPS):
            file.write_table(table)
    for number in range(1, FILES):
        os.link(tmp_path / "0.parquet", tmp_path / f"{number}.parquet")
    said = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, check=True).stdout
    assert int(said) < 200_000  # kB
