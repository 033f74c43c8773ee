"""A recipe, and raw rows for it, with lists, types that Spark does not know, and every kind of table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RECIPE = """
sql = '''
select *, lag(item) over (partition by "user" order by moment, number) as previous
from events
left join items using (item)
'''
group = "user"
segments = ["tab"]
weight = "importance"
[sources]
raw = { files = "log/*.parquet", partition_by = "user" }
items = "items.parquet"
[sources.events]
sql = "select *, cast(item as hugeint) * 10000000000 as huge from raw"
[[table]]
name = "item"
min_count = 2
[[table]]
name = "tags"
max_rows = 20
[[table]]
name = "words"
hash_rows = 50
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "previous"
table = "item"
[[feature]]
name = "huge"
[[feature]]
name = "exact"
[[feature]]
name = "nanoseconds"
[[feature]]
name = "unsigned"
[[feature]]
name = "tags"
kind = "list"
pooling = "mean"
max_length = 3
[[feature]]
name = "path"
column = "tags"
table = "tags"
kind = "sequence"
max_length = 4
[[feature]]
name = "words"
kind = "list"
separator = ","
[[feature]]
name = "price"
kind = "numeric"
transform = "log1p_standardize"
[[task]]
name = "click"
label = "clicked"
[[task]]
name = "seconds"
kind = "duration"
label = "watched"
[sampling]
keep_negatives = 0.7
[split]
by = "time"
column = "moment"
"""


def write_raw(raw: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    (raw / "log").mkdir(parents=True)
    moments = np.datetime64("2024-01-01", "s") + np.sort(rng.integers(0, 86400 * 20, rows))
    item = rng.integers(-5, 300, rows)
    log = pa.table(
        {
            "user": [f"u{i}" for i in rng.integers(0, max(2, rows // 40), rows)],
            "item": pa.array(item, mask=rng.random(rows) < 0.1),
            "moment": moments.astype("datetime64[us]"),
            "number": np.arange(rows),
            "nanoseconds": (moments.astype("datetime64[ns]") + rng.integers(0, 3, rows)),
            "unsigned": (2**63 + rng.integers(0, 9, rows).astype(np.uint64)),
            "unused": ["x" * 100] * rows,
            "tab": pa.array([f"t{i}" for i in rng.integers(0, 3, rows)], mask=rng.random(rows) < 0.1),
            "price": pa.array(rng.gamma(1, 60, rows), mask=rng.random(rows) < 0.2),
            "importance": rng.integers(1, 4, rows),
            "clicked": pa.array(rng.integers(0, 2, rows), mask=rng.random(rows) < 0.2),
            "watched": pa.array(rng.gamma(1, 9, rows), mask=rng.random(rows) < 0.5),
        }
    )
    for number in range(4):
        part = log.slice(number * rows // 4, rows // 4)
        pq.write_table(part, raw / "log" / f"{number}.parquet", row_group_size=max(1, rows // 10))
    items = np.arange(-5, 290)
    described = pa.table(
        {
            "item": items,
            "tags": [[f"g{j}" for j in range(i % 30, i % 30 + i % 5)] for i in range(len(items))],
            "words": [",".join(f"w{j}" for j in range(i % 7)) or None for i in range(len(items))],
            "exact": pa.array(items).cast(pa.decimal128(38, 5)),
        }
    )
    pq.write_table(described, raw / "items.parquet")
