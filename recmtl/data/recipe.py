"""Recipes: a TOML file that says how a raw folder becomes training data.

A recipe is a SQL query that yields one row a training example, and what its columns are: features, embedding
tables, tasks and the split. ``docs/recipes.md`` explains every key; this module parses and checks them. Whatever
can be wrong before a raw file is opened is reported here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from annotated_types import Interval, MultipleOf

from recmtl.config import read_toml
from recmtl.data.recipe_checks import check_recipe
from recmtl.errors import UserError, nearest
from recmtl.features import KINDS, has_table
from recmtl.runtime.storage import is_file, list_folder, parse_path, real_path
from recmtl.schema import FIRST, Pooling, RegressionLoss, Relation, TargetTransform, TaskKind, Transform
from recmtl.typed import LARGEST_COUNT, Fraction, NonNegative, PositiveCount, Texts, from_dict

PACKAGED = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True)
class Source:
    """A view the query can read: Parquet files under the raw folder, or a query over the views before it."""

    name: str
    files: Texts = ()
    """Globs relative to the raw folder; their files together are the source."""
    sql: str = ""
    """Query, in place of files."""
    partition_by: str | None = None
    """Column by which the rows may be cut into parts, for each of which the recipe's query is run by itself. Several
    sources that have one are cut alike: equal values are in one part."""
    optional: bool = False
    """Without any file the source is an empty view with `columns`, instead of an error."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names and SQL types of an optional source."""


@dataclass(frozen=True)
class TableSpec:
    """An embedding table the recipe declares."""

    name: str
    dim: Annotated[PositiveCount, MultipleOf(4)] | None = None
    min_count: PositiveCount = 1
    """Values that occur fewer times than this in the features of `count_from` share id 1, as unseen ones do."""
    count_from: Texts = ()
    """Features whose occurrences count; all features of the table when empty."""
    hash_rows: Annotated[int, Interval(ge=FIRST + 1, le=LARGEST_COUNT)] | None = None
    """Hash the values into this many rows instead of keeping a vocabulary."""
    max_rows: Annotated[int, Interval(ge=FIRST + 1, le=LARGEST_COUNT)] | None = None
    """Most rows of the table: the most frequent values have ids; where data is extended, those that were seen last."""
    expire: PositiveCount | None = None
    """Where data is extended, a value that so many extensions in a row have not seen loses its id."""


@dataclass(frozen=True)
class FeatureSpec:
    """A model input the recipe declares."""

    name: str
    column: str = ""
    """Column of the query; the feature's name unless given."""
    table: str = ""
    """Embedding table; the feature's name unless given. Empty for numeric features."""
    kind: str = "categorical"
    pooling: Pooling = "sum"
    transform: Transform = "none"
    max_length: PositiveCount | None = None
    """Most items kept, of a list from its start, of a sequence from its end."""
    separator: str = ""
    """Splits a text column into a list."""
    history: str = ""
    """The history that a sequence is a column of; the feature's name unless given. Empty for other kinds."""
    target: str = ""
    """Feature that says of the row what a sequence says of the events before it."""


@dataclass(frozen=True)
class TaskSpec:
    """What the recipe wants predicted."""

    name: str
    label: str
    kind: TaskKind = "binary"
    parent: str | None = None
    relation: Relation = "given"
    weight: NonNegative = 1.0
    """Multiplies the task's loss."""
    row_weight: str | None = None
    """Column with the weight of every row for this task."""
    loss: RegressionLoss | None = None
    transform: TargetTransform | None = None
    oracle: str | None = None
    """Column with the true probability, in synthetic data."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns with the label, the true probability and the weight."""
        return tuple(column for column in (self.label, self.oracle, self.row_weight) if column is not None)


@dataclass(frozen=True)
class SamplingSpec:
    """Which training rows are kept."""

    keep_negatives: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Share of the rows without a positive label; a kept one weighs as much as all that it stands for."""


@dataclass(frozen=True)
class SplitSpec:
    """How rows are dealt into train, val and test."""

    by: Literal["random", "time", "column"] = "random"
    column: str | None = None
    """Column of the time, or of the names train, val and test."""
    key: Texts = ()
    """Columns whose equal rows stay together in a random split; every row by itself when empty."""
    val: Fraction | None = None
    test: Fraction | None = None
    vocab_from: Literal["train", "all"] = "train"

    @property
    def val_fraction(self) -> float:
        return self.val if self.val is not None else 0.0 if self.by == "column" else 0.1

    @property
    def test_fraction(self) -> float:
        return self.test if self.test is not None else 0.1

    @property
    def rule(self) -> dict[str, Any]:
        """What decides the split of a row, defaults filled in."""
        fractions = {"val": self.val_fraction, "test": self.test_fraction}
        return {"by": self.by, "column": self.column, "key": list(self.key), **fractions}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe."""

    name: str
    sql: str
    description: str = ""
    sources: tuple[Source, ...] = (Source("raw", ("**/*.parquet",)),)
    tables: tuple[TableSpec, ...] = ()
    features: tuple[FeatureSpec, ...] = ()
    tasks: tuple[TaskSpec, ...] = ()
    split: SplitSpec = field(default_factory=SplitSpec)
    group: str | None = None
    """Column that identifies the user a row belongs to."""
    weight: str | None = None
    """Column with the weight of every row for all tasks."""
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    segments: tuple[str, ...] = ()
    """Columns by whose values metrics can be measured; no model reads them."""
    origin: str = ""
    """Where the recipe was read from, for messages."""
    toml: str = ""
    """Its file, with the keys of the recipes that it extends."""

    @property
    def partitioned_sources(self) -> tuple[Source, ...]:
        """The sources that one machine partitions: a query, whose columns and rows are fewer than those of the files
        that it is made of, or else those files.
        """
        found = [source for source in self.sources if source.partition_by is not None]
        return tuple([source for source in found if source.sql] or found)

    @property
    def predicted(self) -> tuple[str, ...]:
        """Columns with labels, true probabilities or weights: known only after what is predicted, as labels are."""
        columns = [column for task in self.tasks for column in task.columns]
        return tuple(dict.fromkeys([*columns, *([self.weight] if self.weight else [])]))

    @property
    def read_columns(self) -> tuple[str, ...]:
        """Columns of the features and of the user."""
        columns = [feature.column for feature in self.features] + ([self.group] if self.group else [])
        return tuple(dict.fromkeys(columns))

    def features_of(self, table: str) -> list[FeatureSpec]:
        return [feature for feature in self.features if feature.table == table]


@dataclass(frozen=True)
class _File:
    """The keys of a recipe's file."""

    name: str
    sql: str = ""
    description: str = ""
    extends: str = ""
    """The recipe whose keys are added to those of the file before it is read."""
    sources: dict[str, Source] = field(default_factory=lambda: {source.name: source for source in Recipe.sources})
    table: tuple[TableSpec, ...] = ()
    feature: tuple[FeatureSpec, ...] = ()
    task: tuple[TaskSpec, ...] = ()
    split: SplitSpec = field(default_factory=SplitSpec)
    group: str | None = None
    weight: str | None = None
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    segments: Texts = ()


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return [path.stem for path in list_folder(PACKAGED, "*.toml")]


def load_recipe(name_or_path: str) -> Recipe:
    """Read and check a recipe: the name of a packaged one, or the path of a ``.toml`` file.

    Raises:
        UserError: there is no such recipe, or it has a mistake; the message names the file and the key.
    """
    path = _find(name_or_path, Path())
    keys = {"name": path.stem, **_read(path)}
    recipe = _parse(keys, str(path) if path.parent != PACKAGED else f"recipe {path.stem}")
    return replace(recipe, toml=tomli_w.dumps(keys))


def _find(name_or_path: str, folder: Path) -> Path:
    if name_or_path in recipe_names():
        return PACKAGED / f"{name_or_path}.toml"
    path = parse_path(name_or_path) if "://" in name_or_path else folder / name_or_path
    if path.suffix == ".toml" and is_file(path):
        return path
    raise UserError(f"'{name_or_path}' is neither a recipe nor a .toml file; {nearest(name_or_path, recipe_names())}")


def _read(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a recipe, on top of those of the recipe it extends."""
    keys = read_toml(path)
    if "extends" not in keys:
        return keys
    parent = keys.pop("extends")
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends: must be the name of a recipe")
    parent_path = _find(parent, path.parent)
    if real_path(parent_path) in (*children, real_path(path)):
        raise UserError(f"{path}: extends: {parent!r} extends this recipe in turn")
    return {**_read(parent_path, (*children, real_path(path))), **keys}


def _parse(keys: dict[str, Any], origin: str) -> Recipe:
    if "sources" in keys:
        keys = {**keys, "sources": _sources(keys["sources"], origin)}
    file = from_dict(_File, keys, origin)
    features = tuple(_complete(feature, f"{origin}: [[feature]] {feature.name!r}") for feature in file.feature)
    recipe = Recipe(
        name=file.name,
        sql=file.sql,
        description=" ".join(file.description.split()),
        sources=tuple(file.sources.values()),
        tables=file.table + _implicit_tables(features, file.table),
        features=features,
        tasks=file.task,
        split=file.split,
        group=file.group,
        weight=file.weight,
        sampling=file.sampling,
        segments=file.segments,
        origin=origin,
    )
    check_recipe(recipe)
    return recipe


def _sources(section: Any, origin: str) -> Any:
    """Each source as a table of keys, its name among them; files alone are short for ``{files = ...}``."""
    if not isinstance(section, dict):
        return section
    sources = {}
    for name, value in section.items():
        entry = value if isinstance(value, dict) else {"files": value}
        if "name" in entry:
            raise UserError(f"{origin}: unknown key 'sources.{name}.name'; did you mean 'files'?")
        sources[name] = {"name": name, **entry}
    return sources


def _complete(feature: FeatureSpec, where: str) -> FeatureSpec:
    """Fill in what is the feature's name by default.

    Raises:
        UserError: there is no such kind of feature.
    """
    if feature.kind not in KINDS:
        raise UserError(f"{where}: kind: no kind {feature.kind!r}; {nearest(feature.kind, KINDS)}")
    table = feature.table or (feature.name if has_table(feature.kind) else "")
    history = feature.history or (feature.name if feature.kind == "sequence" else "")
    return replace(feature, column=feature.column or feature.name, table=table, history=history)


def _implicit_tables(features: Iterable[FeatureSpec], declared: Iterable[TableSpec]) -> tuple[TableSpec, ...]:
    """A table with the defaults for each feature that has one of its own name and none is declared."""
    return tuple(TableSpec(f.name) for f in features if f.table == f.name not in [table.name for table in declared])
