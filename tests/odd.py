"""Small prepared folders that are legal and unusual, written without `prepare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.schema import Dataset, Feature, Table, Task

ROWS = {"train": 300, "val": 60, "test": 60}


def write_odd(
    folder: Path,
    kinds: Sequence[str],
    *,
    rows: Mapping[str, int] = ROWS,
    table_rows: int = 30,
    weights: Mapping[str, float] | None = None,
    label: int | None = None,
) -> Dataset:
    """Write a folder with a feature of each kind, called after its place and its kind.

    Args:
        folder: to write.
        kinds: of the features; each sparse one has a table of its own.
        rows: by split.
        table_rows: of every table.
        weights: the tasks and their weights; none: click and like with weight 1.
        label: of all rows; None: 0 and 1, by what the features say.
    """
    rng = np.random.default_rng(0)
    names = [f"{kind}_{place}" for place, kind in enumerate(kinds)]
    features = [
        Feature(name, kind=kind, table=None if kind == "numeric" else name, pooling="mean" if kind == "list" else "sum")
        for name, kind in zip(names, kinds, strict=True)
    ]
    weights = weights or {"click": 1.0, "like": 1.0}
    base_rates: dict[str, dict[str, float]] = {task: {} for task in weights}
    for split, count in rows.items():
        columns: dict[str, pa.Array] = {"group": pa.array(rng.integers(0, 9, count), pa.int64())}
        score = np.zeros(count)
        for feature in features:
            ids = rng.integers(0, table_rows, count)
            if feature.kind == "numeric":
                values = rng.normal(size=count)
                columns[feature.name] = pa.array(values, pa.float32())
                score += values
            elif feature.kind == "categorical":
                columns[feature.name] = pa.array(ids, pa.int32())
                score += np.sin(ids)
            else:
                lists = [[int(i)] * (place % 3) for place, i in enumerate(ids)]
                columns[feature.name] = pa.array(lists, pa.list_(pa.int32()))
        for task in weights:
            labels = rng.random(count) < 1 / (1 + np.exp(-score)) if label is None else np.full(count, label)
            columns[f"label_{task}"] = pa.array(labels.astype(np.int8))
            if count:
                base_rates[task][split] = float(labels.mean())
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / split / "part-00000.parquet")
    tables = tuple(Table(f.name, table_rows) for f in features if f.table)
    parents = {task: None if place == 0 else next(iter(weights)) for place, task in enumerate(weights)}
    tasks = tuple(
        Task(task, weight=weight, parent=parents[task], base_rate=base_rates[task]) for task, weight in weights.items()
    )
    dataset = Dataset("odd", dict(rows), tables, tuple(features), tasks, group=True)
    dataset.save(folder)
    return dataset
