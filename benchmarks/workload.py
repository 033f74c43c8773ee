"""A prepared folder in MerRec's shape with a given number of embedding rows, without the hours of events behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from recmtl.data.prepare.content import ContentDigests
from recmtl.data.prepare.shards import schema, write_shards
from recmtl.data.recipe import load_recipe
from recmtl.schema import FIRST, ROW_GROUP_ROWS, SPLITS, Dataset, Feature, Table, Task

LARGE = {"session_id": 4_200_000, "user_id": 2_770_000, "product": 914_000}
"""Values of the tables that are scaled, in the benchmark's month."""
SMALL = {"brand_id": 20_002, "c2_id": 3_074, "c1_id": 310, "c0_id": 18, "size_id": 200, "color": 200}
"""Rows of the others; those not named have 6."""
MISSING = {"color": 0.956, "size_id": 0.627, "brand_id": 0.192}
TEXTS = ("product", "session_id", "color")
"""Tables whose values are texts; those of the others are whole numbers."""
BASE_RATE = {"view": 0.84551, "like": 0.12736}
SIGMA = 1.82
"""Events per value are lognormal: a mean of 63 and a median of 12, as for MerRec's users, give √(2 ln(63/12))."""


def merrec_tables() -> list[str]:
    """Names of MerRec's tables."""
    return list(dict.fromkeys(feature.table for feature in load_recipe("merrec").features))


def table_sizes(names: list[str], rows: int) -> dict[str, int]:
    """Rows of every table: the small ones as in MerRec, the large ones in its proportions, `rows` in all."""
    sizes = {name: SMALL.get(name, 6) for name in names if name not in LARGE}
    left = rows - sum(sizes.values())
    if left < 1000:
        raise ValueError(f"at least {sum(sizes.values()) + 1000} embedding rows, not {rows}")
    for name, values in LARGE.items():
        sizes[name] = left * values // sum(LARGE.values())
    sizes["session_id"] += rows - sum(sizes.values())
    return sizes


def merrec_shaped(sizes: dict[str, int], examples: int) -> Dataset:
    """MerRec's features and tasks with tables of these sizes, on paper."""
    recipe = load_recipe("merrec")
    return Dataset(
        "merrec_shaped",
        {"train": examples, "val": 8192, "test": 8192},
        tuple(Table(name, rows) for name, rows in sizes.items()),
        tuple(Feature(feature.name, table=feature.table) for feature in recipe.features),
        tuple(
            Task(
                task.name,
                parent=task.parent,
                relation=task.relation,
                base_rate=dict.fromkeys(SPLITS, BASE_RATE[task.name]),
            )
            for task in recipe.tasks
        ),
    )


def write_workload(folder: Path, examples: int, embedding_rows: int, seed: int = 0) -> Dataset:
    """Write a prepared folder whose tables have `embedding_rows` rows in all.

    Ids are drawn independently, popular values first as `recmtl prepare` numbers them, so lookups are spread over
    all rows with MerRec's long tail. There is nothing to learn in it: it is for speed only.

    Args:
        folder: to be made.
        examples: training rows; validation and test get 8,192 each.
        embedding_rows: rows of all tables together.
        seed: of the ids.
    """
    names = merrec_tables()
    dataset = merrec_shaped(table_sizes(names, embedding_rows), examples)
    folder.mkdir(parents=True)
    content = ContentDigests()
    for _ in write_shards(_batches(dataset, seed), dataset, folder, content):
        pass
    dataset = replace(dataset, content=content.hexdigests())
    dataset.save(folder)
    return dataset


def _batches(dataset: Dataset, seed: int) -> Iterator[pa.RecordBatch]:
    generator = torch.Generator().manual_seed(seed)
    layout = schema(dataset)
    left = sum(dataset.rows.values())
    while left > 0:
        rows = min(ROW_GROUP_ROWS, left)
        event = torch.rand(rows, generator=generator)
        columns = [
            popular_ids(str(f.table), dataset.table(str(f.table)).rows, rows, generator) for f in dataset.features
        ]
        view = event < BASE_RATE["view"]
        like = ~view & (event < BASE_RATE["view"] + BASE_RATE["like"])
        columns += [view.to(torch.int8).numpy(), like.to(torch.int8).numpy()]
        yield pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=layout)
        left -= rows


def popular_ids(table: str, size: int, rows: int, generator: torch.Generator) -> np.ndarray:
    """Ids by popularity. Weighted by itself a lognormal is one again, its logarithm's mean moved by σ²."""
    z = torch.randn(rows, generator=generator, dtype=torch.float64) + SIGMA
    rank = 0.5 * torch.special.erfc(z / math.sqrt(2))
    ids = (1 + rank * (size - 1)).to(torch.int32).clamp_(max=size - 1)
    ids[torch.rand(rows, generator=generator) < MISSING.get(table, 0.0)] = 0
    return ids.numpy()


def values_of(table: str, ids: np.ndarray) -> pa.Array:
    """The values that have these ids: whole numbers, or texts such as product17; null for id 0."""
    numbers = pa.array(ids.astype(np.int64), mask=ids < FIRST)
    if table not in TEXTS:
        return numbers
    return pc.binary_join_element_wise(pa.scalar(table), numbers.cast(pa.string()), "")
