"""A small prepared folder with a signal in it, written without `prepare`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.prepare.content import ContentDigests
from recmtl.schema import Dataset, Feature, Table, Task

ROW_GROUP = 256


def write_toy(
    folder: Path,
    rows: dict[str, int] | None = None,
    *,
    seed: int = 0,
    extra_features: bool = True,
    table_rows: tuple[int, int] = (50, 200),
) -> Dataset:
    """Write a folder with users, items in two places, a list, a number, two tasks, true probabilities and groups."""
    rows = rows or {"train": 3000, "val": 400, "test": 500}
    users, items = table_rows
    rng = np.random.default_rng(seed)
    taste, worth = rng.normal(size=users), rng.normal(size=items)
    features = [
        Feature("user", table="user"),
        Feature("item", table="item"),
        Feature("previous", table="item"),
    ]
    if extra_features:
        features += [Feature("tags", kind="list", table="tag", pooling="mean"), Feature("price", kind="numeric")]
    tables = (Table("user", users), Table("item", items), *([Table("tag", 20)] if extra_features else []))
    base_rate: dict[str, dict[str, float]] = {"click": {}, "like": {}}
    content = ContentDigests()
    for split, count in rows.items():
        user, item = rng.integers(0, users, count), rng.integers(0, items, count)
        p_click = 1 / (1 + np.exp(-(taste[user] + worth[item])))
        p_like = 1 / (1 + np.exp(-(taste[user] - worth[item] - 1)))
        click, like = rng.random(count) < p_click, rng.random(count) < p_like
        columns: dict[str, pa.Array] = {
            "user": pa.array(user, pa.int32()),
            "item": pa.array(item, pa.int32()),
            "previous": pa.array(rng.integers(0, items, count), pa.int32()),
            "label_click": pa.array(click, pa.int8()),
            "label_like": pa.array(like, pa.int8()),
            "oracle_click": pa.array(p_click, pa.float32()),
            "oracle_like": pa.array(p_like, pa.float32()),
            "group": pa.array(user, pa.int64()),
        }
        if extra_features:
            lengths = rng.integers(0, 4, count)
            offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
            tags = pa.ListArray.from_arrays(offsets, pa.array(rng.integers(0, 20, offsets[-1]), pa.int32()))
            columns |= {"tags": tags, "price": pa.array(rng.normal(size=count), pa.float32())}
        (folder / split).mkdir(parents=True)
        table = pa.table(columns)
        content.add(split, table)
        half = count // 2
        pq.write_table(table.slice(0, half), folder / split / "part-00000.parquet", row_group_size=ROW_GROUP)
        pq.write_table(table.slice(half), folder / split / "part-00001.parquet", row_group_size=ROW_GROUP)
        if count:
            base_rate["click"][split], base_rate["like"][split] = click.mean().item(), like.mean().item()
    dataset = Dataset(
        "toy",
        rows,
        tables,
        tuple(features),
        tuple(Task(name, oracle=True, base_rate=base_rate[name]) for name in ("click", "like")),
        group=True,
        content=content.hexdigests(),
    )
    dataset.save(folder)
    return dataset
