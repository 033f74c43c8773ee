"""``dataset.json``: what a prepared folder holds, so that it describes itself.

A prepared folder is ``{train,val,test}/part-*.parquet``, ``vocab/<table>.parquet`` and ``dataset.json``.
This module is the only place that knows the names of files and columns in it; ``prepare`` writes through
it and the reader reads through it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from recmtl.errors import UserError, nearest
from recmtl.files import write_whole

FORMAT = 1
FILE_NAME = "dataset.json"
SPLITS = ("train", "val", "test")
GROUP_COLUMN = "group"
"""int64 column that identifies the user a row belongs to, for grouped AUC; there when `Dataset.group` is."""

FeatureKind = Literal["categorical", "list", "numeric"]
Pooling = Literal["sum", "mean"]
Transform = Literal["none", "log1p", "standardize", "log1p_standardize"]
Relation = Literal["given", "given_not"]


def label_column(task: str) -> str:
    """Name of the int8 column (0 or 1) with the labels of `task`."""
    return f"label_{task}"


def oracle_column(task: str) -> str:
    """Name of the float32 column with the true probability of `task`, in synthetic data."""
    return f"oracle_{task}"


@dataclass(frozen=True)
class Table:
    """An embedding table: ids 0 … rows − 1, where 0 stands for missing or unseen values."""

    name: str
    rows: int
    dim: int | None = None
    """Embedding dimension the recipe asks for; None: the run's `embedding.dim`."""
    hashed: bool = False
    """Ids are hashes of the values into a fixed number of rows; there is no vocabulary file."""


@dataclass(frozen=True)
class Feature:
    """A model input. In the Parquet files the column has the feature's name.

    categorical: int32; list: list<int32>; numeric: float32, transformed, missing values already filled.
    """

    name: str
    kind: FeatureKind = "categorical"
    table: str | None = None
    """The table its ids index; None for numeric features."""
    pooling: Pooling = "sum"
    transform: Transform = "none"
    """What was done to a numeric feature; log1p of a negative number is −log1p(−x). Missing is 0 afterwards."""
    mean: float = 0.0
    """Subtracted after log1p; measured on the training split, 0 unless the transform standardizes."""
    std: float = 1.0
    """Divided by at the end; measured on the training split, 1 unless the transform standardizes."""
    mean_length: float | None = None
    """Ids in a row of a list feature, on average over the training split, rare values included; for planning only.
    None: not a list, or the folder is older than this field."""


@dataclass(frozen=True)
class Task:
    """A binary label to predict."""

    name: str
    weight: float = 1.0
    parent: str | None = None
    """The task that comes before this one in the funnel (ESMM, AITM)."""
    relation: Relation = "given"
    """given: p(task) = p(parent)·p(task | parent); given_not: p(task) = (1 − p(parent))·p(task | not parent)."""
    oracle: bool = False
    """The files hold the true probability in `oracle_column(name)`."""
    base_rate: dict[str, float] = field(default_factory=dict)
    """Fraction of positive labels, by split; no entry for a split without rows."""


@dataclass(frozen=True)
class Dataset:
    """The contents of ``dataset.json``."""

    name: str
    fingerprint: str
    """Hash of the encoding (features, tables, vocabularies). Equal fingerprints: a model trained on one folder
    can read the other."""
    rows: dict[str, int]
    """Number of rows, by split."""
    tables: tuple[Table, ...]
    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    group: bool = False
    """The files hold `GROUP_COLUMN`."""

    def table(self, name: str) -> Table:
        return next(table for table in self.tables if table.name == name)

    @property
    def sparse_features(self) -> tuple[Feature, ...]:
        """Categorical and list features, in order."""
        return tuple(feature for feature in self.features if feature.kind != "numeric")

    @property
    def numeric_features(self) -> tuple[Feature, ...]:
        return tuple(feature for feature in self.features if feature.kind == "numeric")

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
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        write_whole(folder / FILE_NAME, text + "\n")

    @staticmethod
    def load(folder: Path) -> Dataset:
        """Read ``dataset.json`` from a prepared folder.

        Raises:
            UserError: the folder was not written by ``recmtl prepare`` or by another version of it.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise UserError(f"{folder}: no {FILE_NAME} in it; name a folder that `recmtl prepare` wrote")
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            if fields.pop("format") != FORMAT:
                raise UserError(f"{path}: written by another version of recmtl; prepare the data again")
            return Dataset(
                **{key: fields[key] for key in ("name", "fingerprint", "rows", "group")},
                tables=tuple(Table(**table) for table in fields["tables"]),
                features=tuple(Feature(**feature) for feature in fields["features"]),
                tasks=tuple(Task(**task) for task in fields["tasks"]),
            )
        except (ValueError, KeyError, TypeError) as problem:
            raise UserError(f"{path}: damaged ({problem!r}); prepare the data again") from None

    def files(self, folder: Path, split: str) -> list[Path]:
        """The Parquet files of one split, in order.

        Raises:
            UserError: a split that has rows has no files.
        """
        if split not in SPLITS:
            raise UserError(f"no split {split!r}; {nearest(split, SPLITS)}")
        files = sorted((folder / split).glob("part-*.parquet"))
        if not files and self.rows.get(split, 0):
            raise UserError(f"{folder / split}: no part-*.parquet files; prepare the data again")
        return files
