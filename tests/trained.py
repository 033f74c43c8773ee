"""A recipe over columns of every kind, raw rows for it, runs on them, and what the evaluation's own path computes."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jobs import words

from recmtl import cli
from recmtl.config import load_config
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.distributed.context import process_group
from recmtl.models.predictions import predictions
from recmtl.schema import SPLITS
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.checkpoint_folder import best_checkpoint
from recmtl.training.runs import open_dataset
from recmtl.training.session import TrainSession

ROWS = 400
PLACES = 1024
"""`place` is a row's number over this: exact in float32, so that a batch of the reader says which rows it has."""
FLAGS = {
    "training.batch_size": 64,
    "training.max_steps": 6,
    "training.device": "cpu",
    "metrics.tensorboard": False,
    "embedding.dim": 8,
    "embedding.lr": 0.5,
}
TASKS = {"single_task": ("click",)}
"""The tasks of models that do not train both."""

RECIPE = """
name = "kinds"
sql = '''
select *, lag(item) over (partition by "user" order by seen, number) as previous, number / 1024.0::double as place
from raw
'''
group = "user"
[[table]]
name = "item"
min_count = 2
[[table]]
name = "text"
min_count = 2
[[table]]
name = "bytes"
hash_rows = 7
[[feature]]
name = "place"
kind = "numeric"
[[feature]]
name = "number_of"
column = "price"
kind = "numeric"
transform = "log1p_standardize"
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "previous"
table = "item"
[[feature]]
name = "unsigned"
[[feature]]
name = "double"
[[feature]]
name = "flag"
[[feature]]
name = "day"
[[feature]]
name = "moment"
[[feature]]
name = "text"
[[feature]]
name = "bytes"
[[feature]]
name = "price"
[[feature]]
name = "words"
kind = "list"
pooling = "mean"
[[feature]]
name = "items"
kind = "list"
table = "item"
[[task]]
name = "click"
label = "clicked"
[[task]]
name = "like"
label = "liked"
parent = "click"
[split]
by = "time"
column = "seen"
val = 0.2
test = 0.2
"""
LABELS = ("clicked", "liked")
OF_ALL_KINDS = (
    RECIPE.replace(
        "as place\n", "as place,\n    case when clicked = 1 then liked end as liked_of_clicked, number % 3 as w\n"
    )
    .replace('label = "liked"', 'label = "liked_of_clicked"')
    .replace('group = "user"', 'group = "user"\nweight = "w"')
    .replace(
        "[split]",
        """[[task]]
name = "watch"
kind = "duration"
label = "seconds"
[[task]]
name = "paid"
kind = "regression"
loss = "huber"
transform = "log1p"
label = "paid"
[split]""",
    )
)
"""The same with a label of conditional probability, weights, and tasks that are numbers."""
FEATURE_COLUMNS = (
    *("place", "price", "user", "item", "previous", "unsigned", "double", "flag", "day", "moment", "text", "bytes"),
    *("words", "items"),
)


def raw_rows(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Rows with nulls, values that are rare, and odd ones of every type."""
    rng = np.random.default_rng(seed)

    def some(values: list, kind: pa.DataType) -> pa.Array:
        return pa.array([values[i] for i in rng.integers(0, len(values), rows)], kind)

    clicked = rng.random(rows) < 0.5
    days = [dt.date(1, 1, 1), dt.date(1970, 1, 1), dt.date(2024, 2, 29), None]
    moments = [dt.datetime(1969, 12, 31, 23, 59, 59, 999999), dt.datetime(2024, 1, 1), None]
    prices = [*(decimal.Decimal(i).scaleb(-2) for i in range(-3, 200)), None]
    lists = [[], None, ["a"], ["a", None, "b"], [None], ["é", "e\u0301", "☃\0"], ["b", "b"]]
    return pa.table(
        {
            "number": np.arange(rows),
            "seen": pa.array(dt.datetime(2026, 1, 1) + dt.timedelta(minutes=int(n) // 2) for n in range(rows)),
            "user": some([f"u{i}" for i in range(20)], pa.string()),
            "item": some([*range(-5, 60), None], pa.int64()),
            "unsigned": some([0, 2**63, 2**64 - 1, None], pa.uint64()),
            "double": some([0.0, -0.0, 1.5, float("nan"), float("inf"), None], pa.float64()),
            "flag": some([True, False, None], pa.bool_()),
            "day": some(days, pa.date32()),
            "moment": some(moments, pa.timestamp("us")),
            "text": some(["", "é", "e\u0301", "☃\0", "x" * 3000, None, *map(str, range(200))], pa.string()),
            "bytes": some([b"", b"\0", b"\xff", None], pa.binary()),
            "price": some(prices, pa.decimal128(9, 2)),
            "words": some(lists, pa.list_(pa.string())),
            "items": some([[], None, [1], [1, None, 2, 1], [99]], pa.list_(pa.int64())),
            "seconds": pa.array(rng.exponential(3, rows), mask=~clicked),
            "paid": pa.array(rng.normal(0, 5, rows), mask=rng.random(rows) < 0.3),
            "clicked": clicked.astype(np.int64),
            "liked": (clicked & (rng.random(rows) < 0.5)).astype(np.int64),
        }
    )


def write_raw(folder: Path, table: pa.Table) -> Path:
    """A raw folder of two files."""
    folder.mkdir(parents=True)
    half = len(table) // 2
    pq.write_table(table.slice(0, half), folder / "0.parquet")
    pq.write_table(table.slice(half), folder / "1.parquet")
    return folder


def write_data(folder: Path, recipe: str = RECIPE) -> Path:
    """Make `folder`/raw and prepare it; returns the prepared folder."""
    write_raw(folder / "raw", raw_rows())
    (folder / "kinds.toml").write_text(recipe)
    prepare(load_recipe(str(folder / "kinds.toml")), folder / "raw", folder / "data")
    return folder / "data"


def train(data: Path, run: Path, preset: str, **flags: object) -> Path:
    """A short run on one rank within this process."""
    chosen = ["--training.tasks", *TASKS[preset]] if preset in TASKS else []
    flags = FLAGS | {key.replace("__", "."): value for key, value in flags.items()}
    cli.train([preset, "--data", str(data), "--run", str(run), *words(flags), *chosen])
    return run


def evaluated(data: Path, run: Path) -> Mapping[int, np.ndarray]:
    """The predictions of every row, by its number, as `recmtl evaluate` computes what it measures."""
    config = load_config(str(run / "config.toml"))
    found = {}
    with process_group("cpu") as context:
        dataset, tasks = open_dataset(data, config)
        session = TrainSession(config, data, dataset, tasks, context, measure=SPLITS)
        Checkpoints(run / "checkpoints", session).load_whole(best_checkpoint(run))
        session.model.eval()
        for split in SPLITS:
            batches = session.readers[split].batches()
            for _ in range(session.readers[split].steps):
                with torch.no_grad():
                    _, _, logits, batch = session.run_batch(batches)
                numbers = (batch.numeric[: batch.rows, 0] * PLACES).round().int().tolist()
                found.update(zip(numbers, predictions(logits[: batch.rows], tasks).numpy(), strict=True))
    assert sorted(found) == list(range(ROWS))
    return found
