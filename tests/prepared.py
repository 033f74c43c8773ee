"""Raw rows, a recipe for them, and what `prepare` makes of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.schema import FIRST, Dataset

RECIPE = """
sql = '''
select *, filename as file
from raw
'''
group = "user"
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "previous"
table = "item"
[[feature]]
name = "tags"
kind = "list"
pooling = "mean"
[[feature]]
name = "price"
kind = "numeric"
transform = "log1p_standardize"
[[task]]
name = "click"
label = "clicked"
[split]
val = 0.2
test = 0.2
"""


def events(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    item = rng.integers(-5, 30, rows)
    return pa.table(
        {
            "user": pa.array([f"u{i}" for i in rng.integers(0, 20, rows)]),
            "item": pa.array(item, mask=rng.random(rows) < 0.1),
            "previous": pa.array(rng.integers(-5, 30, rows)),
            "tags": pa.array([[f"t{j}" for j in range(i % 4)] for i in range(rows)]),
            "price": pa.array(rng.gamma(1, 60, rows), mask=rng.random(rows) < 0.2),
            "clicked": pa.array(rng.integers(0, 2, rows)),
            "at": pa.array(rng.integers(0, 50, rows)),
            "number": pa.array(np.arange(rows)),
        }
    )


def run(
    folder: Path, table: pa.Table | list[pa.Table], text: str = RECIPE, out: str = "out", **options: Any
) -> Dataset:
    """Write `table` as the raw folder and prepare it."""
    raw = folder / "raw"
    raw.mkdir(exist_ok=True)
    for number, part in enumerate(table if isinstance(table, list) else [table]):
        pq.write_table(part, raw / f"{number}.parquet")
    (folder / "mine.toml").write_text(text)
    return prepare(load_recipe(str(folder / "mine.toml")), raw, folder / out, **options)


def read(folder: Path, split: str, out: str = "out") -> pa.Table:
    files = sorted((folder / out / split).glob("part-*.parquet"))
    return pa.concat_tables(map(pq.read_table, files)) if files else pa.table({})


def read_all(folder: Path, out: str = "out") -> pa.Table:
    return pa.concat_tables(part for split in ("train", "val", "test") if (part := read(folder, split, out)).num_rows)


def vocabulary(folder: Path, table: str) -> dict[Any, int]:
    columns = pq.read_table(folder / "out" / "vocab" / f"{table}.parquet").to_pydict()
    assert columns["id"] == list(range(FIRST, FIRST + len(columns["id"])))
    return dict(zip(columns["value"], columns["id"], strict=True))


def only(kind: str, column: pa.Array, rest: str = "") -> tuple[pa.Table, str]:
    """Rows with one feature x of values `column`, and a recipe that trains on all but one of them in ten."""
    rows = len(column)
    table = pa.table({"x": column, "y": pa.array(np.arange(rows) % 2), "n": pa.array(np.arange(rows))})
    return table, (
        f'sql = "select * from raw"\n[[feature]]\nname = "x"\nkind = "{kind}"\n{rest}\n'
        '[[task]]\nname = "y"\nlabel = "y"\n[split]\nval = 0.0\ntest = 0.0\n'
    )
