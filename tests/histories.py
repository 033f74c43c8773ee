"""Raw rows with histories of any length, a recipe for them, and data prepared from both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from prepared import run

RECIPE = """
name = "histories"
sql = "select * from raw"
[[table]]
name = "item"
[[table]]
name = "brand"
dim = 4
[[table]]
name = "action"
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "brand"
[[feature]]
name = "liked_items"
kind = "list"
table = "item"
pooling = "mean"
[[feature]]
name = "price"
kind = "numeric"
[[feature]]
name = "last_actions"
kind = "sequence"
table = "action"
history = "before"
max_length = 20
[[feature]]
name = "last_items"
kind = "sequence"
table = "item"
history = "before"
target = "item"
max_length = 20
[[feature]]
name = "last_brands"
kind = "sequence"
table = "brand"
history = "before"
target = "brand"
max_length = 20
[[feature]]
name = "searches"
kind = "sequence"
separator = " "
[[task]]
name = "click"
label = "clicked"
[[task]]
name = "like"
label = "liked"
parent = "click"
[split]
val = 0.2
test = 0.2
"""
FEATURE_COLUMNS = (
    *("user", "item", "brand", "liked_items", "price", "last_actions", "last_items", "last_brands", "searches"),
)
ITEMS, BRANDS = 30, 6


def raw_rows(rows: int = 400, seed: int = 0, longest: int = 30) -> pa.Table:
    """A click is likely where the item is among the last ones; some histories are empty, items and brands null."""
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(rows) < 0.2, 0, rng.integers(0, longest, rows))
    last = [rng.integers(0, ITEMS, n).tolist() for n in lengths]
    item = [row[0] if row and rng.random() < 0.5 else int(rng.integers(0, ITEMS)) for row in last]
    seen = np.array([i in row[-20:] for i, row in zip(item, last, strict=True)])
    clicked = rng.random(rows) < np.where(seen, 0.9, 0.1)

    def brands(items: list[int]) -> list[str | None]:
        return [None if i % BRANDS == 0 else f"brand {i % BRANDS}" for i in items]

    nulls = [None if not row and rng.random() < 0.5 else row for row in last]
    return pa.table(
        {
            "number": np.arange(rows),
            "user": rng.integers(0, 20, rows),
            "item": item,
            "brand": brands(item),
            "liked_items": [row[::3] for row in last],
            "price": rng.normal(size=rows),
            "last_actions": [["view" if i % 2 else None for i in row] for row in last],
            "last_items": pa.array(nulls, pa.list_(pa.int64())),
            "last_brands": pa.array(list(map(brands, last)), pa.list_(pa.string())),
            "searches": [" ".join(f"w{i % 5}" for i in row[:3]) or None for row in last],
            "clicked": clicked,
            "liked": clicked & (rng.random(rows) < 0.5),
        }
    )


def write_data(folder: Path, rows: int = 400, text: str = RECIPE) -> Path:
    """Raw rows in ``raw/``, prepared in ``out/``."""
    run(folder, raw_rows(rows), text)
    return folder / "out"
