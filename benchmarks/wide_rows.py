"""Raw files and recipes of rows with many ids, for the memory of `recmtl prepare`: long lists, a large table.

Every value is drawn uniformly, so that a batch's distinct values are as many as they can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

CHUNK_ROWS = 2**17
LIST_ITEMS = 20
SHARED = "value"
"""The table of all features that have no table of their own."""


@dataclass(frozen=True)
class WideRows:
    """Rows to prepare."""

    rows: int
    values: int
    """Distinct values that ids are drawn from."""
    features: int
    kind: str
    """Of all features: ``categorical``, or ``list`` of `LIST_ITEMS` ids."""
    shared: bool = False
    """All features have one table; else each has its own."""

    @property
    def label(self) -> str:
        """In words."""
        what = f"{self.features} lists of {LIST_ITEMS}" if self.kind == "list" else f"{self.features} columns"
        where = "one table" if self.shared or self.features == 1 else "a table each"
        return f"{self.rows / 1e6:g} M rows, {what} of {self.values / 1e6:g} M values, {where}"


WIDE_ROWS = {
    "list": WideRows(3_000_000, 1_000_000, 1, "list"),
    "nine_lists": WideRows(1_000_000, 1_000_000, 9, "list"),
    "shared_table": WideRows(3_000_000, 10_000_000, 8, "categorical", shared=True),
}


def write_raw(wide: WideRows, folder: Path) -> None:
    """Write the rows, a label of two values among them, into one Parquet file in a folder, made here."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    each = LIST_ITEMS if wide.kind == "list" else 1
    items = pa.list_(pa.int64()) if wide.kind == "list" else pa.int64()
    schema = pa.schema([("label", pa.int8()), *((f"f{number}", items) for number in range(wide.features))])
    with pq.ParquetWriter(folder / "rows.parquet", schema, use_dictionary=False, compression="none") as file:
        for start in range(0, wide.rows, CHUNK_ROWS):
            rows = min(CHUNK_ROWS, wide.rows - start)
            columns = [pa.array(generator.integers(0, 2, rows, np.int8))]
            for _ in range(wide.features):
                ids = pa.array(generator.integers(0, wide.values, rows * each))
                offsets = pa.array(np.arange(0, rows * each + 1, each, dtype=np.int32))
                columns.append(pa.ListArray.from_arrays(offsets, ids) if wide.kind == "list" else ids)
            file.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def write_recipe(wide: WideRows, path: Path) -> None:
    """Write a recipe that gives every value an id."""
    names = [f"f{number}" for number in range(wide.features)]
    features = [{"name": name, "kind": wide.kind, "table": SHARED if wide.shared else name} for name in names]
    tables = [{"name": name, "min_count": 1} for name in dict.fromkeys(feature["table"] for feature in features)]
    recipe = {
        "sql": "select * from raw",
        "table": tables,
        "feature": features,
        "task": [{"name": "label", "label": "label"}],
        "split": {"by": "random", "val": 0.05, "test": 0.05},
    }
    path.write_text(tomli_w.dumps(recipe))
