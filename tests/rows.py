"""A prepared folder whose rows are functions of their numbers, and what a reader makes of it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.read.batch import Batch
from recmtl.data.read.reader import Reader
from recmtl.schema import Dataset, Feature, Table, Task

ROWS_IN_TABLE = 5000
TASKS = (Task("a", oracle=True), Task("b"))


class Row(NamedTuple):
    """All that a row holds, as a function of its number: a mixed-up column shows."""

    number: int
    other: int
    tags: tuple[int, ...]
    price: float
    a: int
    b: int
    oracle: float
    group: int


def row(number: int) -> Row:
    return Row(
        number,
        number * 7 % 4999,
        tuple((number + i) % 11 for i in range(number % 4)),
        number / 2,
        number % 2,
        number // 2 % 2,
        number / 2**13,
        10**12 + number // 3,
    )


def table_of(start: int, stop: int) -> pa.Table:
    rows = [row(number) for number in range(start, stop)]
    columns = {
        "row": (pa.int32(), [r.number for r in rows]),
        "other": (pa.int32(), [r.other for r in rows]),
        "tags": (pa.list_(pa.int32()), [r.tags for r in rows]),
        "price": (pa.float32(), [r.price for r in rows]),
        "label_a": (pa.int8(), [r.a for r in rows]),
        "label_b": (pa.int8(), [r.b for r in rows]),
        "oracle_a": (pa.float32(), [r.oracle for r in rows]),
        "group": (pa.int64(), [r.group for r in rows]),
    }
    return pa.table({name: pa.array(values, kind) for name, (kind, values) in columns.items()})


def write(folder: Path, rows: int, *, files: int = 2, row_group: int = 10) -> Dataset:
    """A prepared folder whose training split has `rows` rows in files of unequal size."""
    (folder / "train").mkdir(parents=True)
    bounds = [rows * i * i // files**2 for i in range(files + 1)]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        path = folder / "train" / f"part-{number:05d}.parquet"
        pq.write_table(table_of(start, stop), path, row_group_size=row_group)
    dataset = Dataset(
        name="rows",
        rows={"train": rows},
        tables=(Table("row", ROWS_IN_TABLE), Table("tag", 11)),
        features=(
            Feature("row", table="row"),
            Feature("price", kind="numeric"),
            Feature("tags", kind="list", table="tag"),
            Feature("other", table="row"),
        ),
        tasks=TASKS,
        group=True,
    )
    dataset.save(folder)
    return dataset


def reader(folder: Path, tasks: tuple[Task, ...] = TASKS, **options) -> Reader:
    options = {"batch_size": 16, "streams": 8, "evaluation": True, **options}
    return Reader(folder, Dataset.load(folder), "train", tasks, **options)


def rows_of(batch: Batch) -> list[Row]:
    """The real rows of a batch, read from all its columns."""
    numbers, others = batch.sparse["row"].values().tolist(), batch.sparse["other"].values().tolist()
    tags = [tuple(values.tolist()) for values in batch.sparse["tags"].to_dense()]
    assert batch.oracle is not None
    assert batch.group is not None
    return [
        Row(
            numbers[i],
            others[i],
            tags[i],
            batch.numeric[i, 0].item(),
            *batch.labels[i].int().tolist(),
            batch.oracle[i, 0].item(),
            batch.group[i].item(),
        )
        for i in range(len(batch.weights))
        if batch.weights[i] > 0
    ]
