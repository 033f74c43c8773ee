"""What everything else speaks of: a prepared folder's features, embedding tables, tasks, ids, types, files and columns.

A prepared folder is ``{train,val,test}/part-*.parquet``, ``vocab/<table>.parquet``, ``encoder/``, ``recipe.toml`` and
``dataset.json``, which says what the folder holds (`Dataset`). This module is the only place that knows the names of
files and columns in it; ``prepare`` writes through it and the reader reads through it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from recmtl.errors import UserError, nearest
from recmtl.runtime.storage import is_file, list_folder, os_errors, read_json, write_whole

FORMAT = 5
FILE_NAME = "dataset.json"
ENCODER = "encoder"
"""Folder of the encoder (`recmtl.encoding.encoder`)."""
RECIPE = "recipe.toml"
"""The recipe, with the keys of those that it extends."""
VOCABULARIES = "vocab"
"""Folder of the vocabularies."""
PENDING = "pending"
"""Folder with the values that are too rare for an id, and how often they were seen."""
SPLITS = ("train", "val", "test")
WHOLE = "whole"
"""In place of a split's name, for measuring: the rows of all splits, one split after the other."""
ROW_GROUP_ROWS = 16_384
"""Rows of a row group of a prepared file, the last one of a file excepted."""
FILE_ROW_GROUPS = 16
"""Row groups of a prepared file, the last one of a split excepted. Where files are many, the reader opens one for
nearly every row group, and a footer takes time and memory for each column of every row group in it."""
GROUP_COLUMN = "group"
"""int64 column that identifies the user a row belongs to, for grouped AUC; there when `Dataset.group` is."""
NO_USER = -1
"""What `GROUP_COLUMN` holds in a row that belongs to no user."""
WEIGHT_COLUMN = "weight"
"""float32 column with the weight of a row for all tasks; there when `Dataset.row_weight` is."""

PLANNING_FIGURES = ("mean_length", "longest", "missing", "unseen")
"""Fields of a feature that a model does not depend on: they help to plan and to look at the data."""

MISSING, UNSEEN, FIRST = 0, 1, 2
"""Ids of missing and of unseen or rare values, and the first of a value."""

SIGNED = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
INTEGERS = (*SIGNED, *(f"U{name}" for name in SIGNED))
FLOATS = ("FLOAT", "DOUBLE")
"""SQL types of numbers, beside DECIMAL(precision, scale)."""

SourceColumns = dict[str, dict[str, str]]
"""SQL types of the columns of the raw files, by source and name."""
Pooling = Literal["sum", "mean"]
Transform = Literal["none", "log1p", "standardize", "log1p_standardize"]
Relation = Literal["given", "given_not"]
TaskKind = Literal["binary", "regression", "duration"]
RegressionLoss = Literal["squared", "huber"]
TargetTransform = Literal["none", "log1p"]


def label_column(task: str) -> str:
    """Name of the column with the labels of `task`, null where there is none.

    int8, 0 or 1, of a binary task; float32, in the label's unit, of the others.
    """
    return f"label_{task}"


def label_type(task: Task) -> str:
    """Name of Arrow's type of the column with the labels of a task."""
    return "int8" if task.kind == "binary" else "float32"


def weight_column(task: str) -> str:
    """Name of the float32 column with the weights that rows have for `task` alone."""
    return f"weight_{task}"


def segment_column(name: str) -> str:
    """Name of the text column with the values of a segment, null where missing."""
    return f"segment_{name}"


def oracle_column(task: str) -> str:
    """Name of the float32 column with the true probability of `task`, in synthetic data."""
    return f"oracle_{task}"


def is_number(sql_type: str) -> bool:
    """Whether values of a SQL type are numbers, or booleans, which count as 0 and 1."""
    return sql_type in (*INTEGERS, *FLOATS, "BOOLEAN") or sql_type.startswith("DECIMAL")


@dataclass(frozen=True)
class Table:
    """An embedding table: ids 0 … rows − 1, where 0 stands for missing values and 1 for unseen or rare ones."""

    name: str
    rows: int
    dim: int | None = None
    """Embedding dimension the recipe asks for; None: the run's `embedding.dim`."""
    hashed: bool = False
    """Ids are hashes of the values into a fixed number of rows; there is no vocabulary file."""
    value_type: str = ""
    """SQL type of the values, such as BIGINT or VARCHAR: the number 7 and the text '7' are different values."""
    vocabulary: str = ""
    """Digest of the values and their ids; empty when they are hashed."""


@dataclass(frozen=True)
class TableGrowth:
    """How the ids of an embedding table changed when its data were extended."""

    new: int
    """Values that got an id."""
    retired: int
    """Values that lost theirs."""
    waiting: int
    """Values without an id that are counted on, being too rare or too many so far."""


@dataclass(frozen=True)
class Feature:
    """A model input. In the Parquet files the column has the feature's name.

    categorical: int32; list, sequence: list<int32>; numeric: float32, transformed, missing values already filled.
    """

    name: str
    kind: str = "categorical"
    """One of `recmtl.features.KINDS`."""
    column: str = ""
    """Column of the recipe's query."""
    table: str | None = None
    """The table its ids index; None for numeric features."""
    pooling: Pooling = "sum"
    transform: Transform = "none"
    """What was done to a numeric feature; log1p of a negative number is −log1p(−x). Missing is 0 afterwards."""
    mean: float = 0.0
    """Subtracted after log1p; measured on the training split, 0 unless the transform standardizes."""
    mean_tail: float = 0.0
    """What the exact mean is beyond `mean`, subtracted after it; matters where numbers are large and lie close."""
    std: float = 1.0
    """Divided by at the end; measured on the training split, 1 unless the transform standardizes."""
    mean_length: float = 1.0
    """Ids per row, on average over the training rows; 1 where it is no list. For planning only."""
    longest: int = 1
    """Most ids of a training row; 1 where it is no list. For planning only."""
    max_length: int | None = None
    """Most items kept, of a list from its start, of a sequence from its end; None: no limit."""
    separator: str = ""
    """What splits a text column into a list; empty: the column holds lists."""
    history: str = ""
    """Of a sequence: the history that it is a column of. Its columns have an item each for every event."""
    target: str = ""
    """Of a sequence: the categorical feature of its table that says of the row what the sequence says of the events
    before it; empty: none does."""
    width: int = 1
    """Numbers of a row of a dense feature."""
    missing: dict[str, float] = field(default_factory=dict)
    """Share of the rows without a value, of a list feature without any item, by split; no entry for splits without
    rows."""
    unseen: dict[str, float] = field(default_factory=dict)
    """Share of the rows whose value is not missing and has no id of its own, being unseen or rare, by split. Of a list
    feature: share of its items that are not null. No entries for numeric features."""


@dataclass(frozen=True)
class Task:
    """What is predicted: whether something happens, or how much of it.

    A label may be missing from a row: what happened was not observed. Such a row has no part in the loss and in the
    metrics of the task.
    """

    name: str
    kind: TaskKind = "binary"
    """binary: a label of 0 or 1. regression: any number. duration: a number of 0 or more, such as seconds watched."""
    weight: float = 1.0
    """Multiplies the task's loss."""
    parent: str | None = None
    """The binary task that comes before this one, which is binary too, in the funnel (ESMM, AITM)."""
    relation: Relation = "given"
    """given: p(task) = p(parent)·p(task | parent); given_not: p(task) = (1 − p(parent))·p(task | not parent)."""
    conditional: bool = False
    """The label is missing wherever the parent's says that the task could not happen, so that it is a label of
    p(task | parent), or of p(task | not parent)."""
    loss: RegressionLoss = "squared"
    """Of a regression task: of the standardised target."""
    transform: TargetTransform = "none"
    """What is done to the label of a regression task first; log1p of a negative number is −log1p(−x)."""
    mean: float = 0.0
    """Of a regression task: mean of the transformed labels of the training rows. Of a duration: of the labels, by their
    weights. Both only set the scale in which a model predicts."""
    std: float = 1.0
    """Of a regression task: deviation of the same."""
    oracle: bool = False
    """The files hold the true probability in `oracle_column(name)`."""
    row_weight: bool = False
    """The files hold weights for this task alone in `weight_column(name)`."""
    observed: dict[str, int] = field(default_factory=dict)
    """Rows with a label, by split."""
    base_rate: dict[str, float] = field(default_factory=dict)
    """Mean label of the rows that have one, by their weights and by split; no entry for a split without such rows. Of a
    binary task it is the fraction of positive labels."""
    label: str = ""
    """Column of the recipe's query that holds the label."""


@dataclass(frozen=True)
class Dataset:
    """The contents of ``dataset.json``, which also holds both fingerprints."""

    name: str
    rows: dict[str, int]
    """Number of rows, by split."""
    tables: tuple[Table, ...]
    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    group: bool = False
    """The files hold `GROUP_COLUMN`."""
    row_weight: bool = False
    """The files hold `WEIGHT_COLUMN`."""
    segments: tuple[str, ...] = ()
    """Columns of the query by whose values metrics can be measured, and which no model reads. The files hold them as
    text in `segment_column(name)`."""
    unlabelled: int = 0
    """Rows that were left out because no task has a label in them."""
    keep_negatives: float = 1.0
    """Share of the training rows without a positive label that were kept, at 1 / share of their weight."""
    lineage: tuple[str, ...] = ()
    """Encoding fingerprints of the data that this was extended from, the oldest first. Part of no fingerprint."""
    until: str = ""
    """Last moment of the rows, by the column of a split by time. Part of no fingerprint either."""
    growth: dict[str, TableGrowth] = field(default_factory=dict)
    """By table with a vocabulary, of data that extend others. Part of no fingerprint either."""
    split: dict[str, Any] = field(default_factory=dict)
    """The rule by which rows were dealt into splits."""
    content: dict[str, dict[str, str]] = field(default_factory=dict)
    """Digest of every column, by split (`recmtl.data.prepare.content`)."""
    sql: str = ""
    """Digest of the recipe's queries. Part of no fingerprint: it tells why the content may differ."""
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows of every raw file, by source and name. Part of no fingerprint either."""
    source_columns: SourceColumns = field(default_factory=dict)
    """What the raw files' columns were: new files that lack some can be predicted all the same. Part of no fingerprint
    either."""
    limit: int | None = None
    """Raw rows that were read of the recipe's first source, where it had more and only a part was asked for. Part of no
    fingerprint either: the content tells."""

    @cached_property
    def encoding_fingerprint(self) -> str:
        """Digest of what a model needs to be right: features and tables, with their vocabularies and statistics.

        A model trained on one folder can be measured on another one of the same encoding.
        """
        features = [
            {key: value for key, value in asdict(feature).items() if key not in PLANNING_FIGURES}
            for feature in self.features
        ]
        return _digest({"features": features, "tables": [asdict(table) for table in self.tables]})

    @cached_property
    def data_fingerprint(self) -> str:
        """Digest of what a training run depends on: the encoding, tasks, split, and the content of every column.

        A run goes on only on data of the fingerprint it began with, and only runs of one fingerprint are compared.
        """
        tasks = [{key: value for key, value in asdict(task).items() if key != "base_rate"} for task in self.tasks]
        rest = {"split": self.split, "group": self.group, "rows": self.rows, "content": self.content}
        return _digest({"encoding": self.encoding_fingerprint, "tasks": tasks, **rest})

    @property
    def generation(self) -> int:
        """How often the encoding was extended. Ids keep the generation that assigned them."""
        return len(self.lineage)

    def generation_of(self, fingerprint: str) -> int | None:
        """The generation of an encoding of this fingerprint; None: the encoding did not grow from it."""
        fingerprints = [*self.lineage, self.encoding_fingerprint]
        return max((number for number, other in enumerate(fingerprints) if other == fingerprint), default=None)

    def table(self, name: str) -> Table:
        return next(table for table in self.tables if table.name == name)

    def is_partial(self, task: Task) -> bool:
        """Whether some rows have no label of a task."""
        return any(task.observed.get(split, rows) < rows for split, rows in self.rows.items())

    @property
    def sparse_features(self) -> tuple[Feature, ...]:
        """Features with an embedding table, in order."""
        return tuple(feature for feature in self.features if feature.table is not None)

    @property
    def dense_features(self) -> tuple[Feature, ...]:
        """Features without a table, in order: numbers that models read as they are."""
        return tuple(feature for feature in self.features if feature.table is None)

    def select_tasks(self, names: tuple[str, ...]) -> tuple[Task, ...]:
        """The tasks called `names` in the recipe's order; all of them when `names` is empty.

        Raises:
            UserError: there is no task of that name.
        """
        known = [task.name for task in self.tasks]
        for name in names:
            if name not in known:
                raise UserError(f"training.tasks: {self.name!r} has no task {name!r}; {nearest(name, known)}")
        return tuple(task for task in self.tasks if not names or task.name in names)

    def save(self, folder: Path) -> None:
        """Write ``dataset.json`` into `folder`."""
        text = json.dumps({"format": FORMAT, **self._fingerprints(), **asdict(self)}, indent=2)
        write_whole(folder / FILE_NAME, text + "\n")

    def _fingerprints(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("encoding_fingerprint", "data_fingerprint")}

    @staticmethod
    def load(folder: Path) -> Dataset:
        """Read ``dataset.json`` from a prepared folder.

        Raises:
            UserError: the folder was not written by ``recmtl prepare``, by another version of it, or was changed.
        """
        path = folder / FILE_NAME
        if not is_file(path):
            raise UserError(f"{folder}: no {FILE_NAME} in it; name a folder that `recmtl prepare` wrote")
        try:
            values: dict[str, Any] = read_json(path)
            if values.pop("format") != FORMAT:
                raise UserError(f"{path}: written by another version of recmtl; prepare the data again")
            written = {name: values.pop(name) for name in ("encoding_fingerprint", "data_fingerprint")}
            values |= {
                "tables": tuple(Table(**table) for table in values["tables"]),
                "features": tuple(Feature(**feature) for feature in values["features"]),
                "tasks": tuple(Task(**task) for task in values["tasks"]),
                "lineage": tuple(values["lineage"]),
                "segments": tuple(values["segments"]),
                "growth": {table: TableGrowth(**counts) for table, counts in values["growth"].items()},
            }
            dataset = Dataset(**{slot.name: values.pop(slot.name) for slot in fields(Dataset)})
            if values or dataset._fingerprints() != written:
                raise UserError(f"{path}: changed after it was written; prepare the data again")
            return dataset
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); prepare the data again") from None

    def count(self, split: str) -> int:
        """Number of rows of a split, or of the `WHOLE` folder."""
        return sum(self.rows.get(part, 0) for part in _parts(split))

    def files(self, folder: Path, split: str) -> list[Path]:
        """The Parquet files of a split, or of the `WHOLE` folder, in order.

        Raises:
            UserError: a split that has rows has no files.
        """
        found = []
        for part in _parts(split):
            with os_errors(folder):
                files = list_folder(folder / part, "part-*.parquet")
            if not files and self.rows.get(part, 0):
                raise UserError(f"{folder / part}: no part-*.parquet files; prepare the data again")
            found += files
        return found


def _parts(split: str) -> tuple[str, ...]:
    """The splits that a name of rows stands for."""
    if split not in (*SPLITS, WHOLE):
        raise UserError(f"no split {split!r}; {nearest(split, SPLITS)}")
    return SPLITS if split == WHOLE else (split,)


def _digest(value: Any) -> str:
    """SHA-256 of a value's JSON, the first 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
