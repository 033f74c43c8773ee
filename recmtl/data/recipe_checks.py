"""What can be wrong between the keys of a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from recmtl.errors import UserError, nearest
from recmtl.features import KINDS
from recmtl.schema import GROUP_COLUMN, WEIGHT_COLUMN, label_column, oracle_column, segment_column, weight_column

RESERVED = (label_column(""), oracle_column(""), weight_column(""), segment_column(""))
"""Beginnings of the names of columns that are no features."""
LONGEST_NAME = 200
"""Bytes: file systems allow 255, and something is put before and after it."""

if TYPE_CHECKING:
    from recmtl.data.recipe import FeatureSpec, Recipe, Source, SplitSpec, TableSpec, TaskSpec


def check_recipe(recipe: Recipe) -> None:
    """Everything that can be wrong between the keys.

    Raises:
        UserError: names the recipe, the entry and the key.
    """
    where = recipe.origin
    if not recipe.sql.strip():
        raise UserError(f"{where}: sql: missing; write the query that yields one row per training example")
    if not recipe.sources:
        raise UserError(f"{where}: [sources]: must name views and their files")
    if not recipe.features:
        raise UserError(f"{where}: no [[feature]]; name the columns the model reads")
    if not recipe.tasks:
        raise UserError(f"{where}: no [[task]]; name the columns the model predicts")
    _check_name(recipe.name, f"{where}: name")
    for section, specs in (
        ("[sources]", recipe.sources),
        ("[[feature]]", recipe.features),
        ("[[table]]", recipe.tables),
        ("[[task]]", recipe.tasks),
    ):
        _check_names([spec.name for spec in specs], f"{where}: {section}")
    _check_names(list(recipe.segments), f"{where}: segments")
    for source in recipe.sources:
        _check_source(source, f"{where}: [sources] {source.name!r}")
    if len(cut := [source.name for source in recipe.sources if source.partition_by is not None and source.sql]) > 1:
        raise UserError(f"{where}: [sources]: partition_by is for one source with sql, not for {', '.join(cut)}")
    for table in recipe.tables:
        _check_table(recipe, table, f"{where}: [[table]] {table.name!r}")
    for feature in recipe.features:
        _check_feature(recipe, feature, f"{where}: [[feature]] {feature.name!r}")
    for feature in recipe.features:
        if feature.history:
            _check_sequence(recipe, feature, f"{where}: [[feature]] {feature.name!r}")
    for task in recipe.tasks:
        _check_task(recipe, task, f"{where}: [[task]] {task.name!r}")
    _check_split(recipe.split, f"{where}: [split]")
    _check_unpredicted(recipe, f"{where}: [split]")


def _check_name(name: str, where: str) -> None:
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"{where}: {name!r} is not a name; use letters, digits, '_' and '-' (no '@', '.' or blanks)")
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f"{where}: {name[:20]!r}... is too long for the name of a file; at most {LONGEST_NAME} bytes")


def _check_names(names: list[str], where: str) -> None:
    for name in names:
        _check_name(name, where)
        if [other.lower() for other in names].count(name.lower()) > 1:
            raise UserError(f"{where}: {name!r} is there twice; names must differ in more than capitals")


def _check_source(source: Source, where: str) -> None:
    if bool(source.files) == bool(source.sql):
        raise UserError(f"{where}: give files (at least one glob) or sql, one of them")
    for pattern in source.files:
        if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise UserError(f"{where}: {pattern!r} must be a glob relative to the raw folder")
    if source.optional and not (source.columns and source.files):
        raise UserError(
            f'{where}: optional is for files, and needs columns = {{name = "TYPE"}} for when they are absent'
        )


def _check_table(recipe: Recipe, table: TableSpec, where: str) -> None:
    if not recipe.features_of(table.name):
        raise UserError(f"{where}: no feature uses it; remove it or give a feature table = {table.name!r}")
    if table.hash_rows and table.min_count > 1:
        raise UserError(f"{where}: min_count does nothing in a hashed table; remove it or hash_rows")
    if table.hash_rows and table.count_from:
        raise UserError(f"{where}: count_from does nothing in a hashed table; remove it or hash_rows")
    for key in ("max_rows", "expire"):
        if table.hash_rows and getattr(table, key) is not None:
            raise UserError(f"{where}: {key} does nothing in a hashed table; remove it or hash_rows")
    own = [feature.name for feature in recipe.features_of(table.name)]
    for name in table.count_from:
        if name not in own:
            raise UserError(f"{where}: count_from: {name!r} is not a feature of this table; {nearest(name, own)}")


def _check_feature(recipe: Recipe, feature: FeatureSpec, where: str) -> None:
    name = feature.name
    if name in (GROUP_COLUMN, WEIGHT_COLUMN) or name.startswith(RESERVED):
        raise UserError(
            f"{where}: the name is reserved (group, weight, label_*, oracle_*, weight_*, segment_*); give it another "
            "and set column"
        )
    for key in dict.fromkeys(option for kind in KINDS.values() for option in kind.options):
        changed = getattr(feature, key) != getattr(type(feature)(name), key)
        if changed and key not in KINDS[feature.kind].options:
            kinds = " or ".join(name for name, kind in KINDS.items() if key in kind.options)
            raise UserError(f"{where}: {key} is for features of kind {kinds}, this one is {feature.kind}")
    if feature.table and feature.table not in [table.name for table in recipe.tables]:
        raise UserError(f"{where}: table: there is no [[table]] {feature.table!r}; declare it")
    for task in recipe.tasks:
        if feature.column in (task.label, task.oracle):
            raise UserError(f"{where}: column {feature.column!r} is what task {task.name!r} predicts")


def _check_sequence(recipe: Recipe, feature: FeatureSpec, where: str) -> None:
    """A sequence, its target, and the history that it is a column of."""
    by_name = {other.name: other for other in recipe.features}
    columns = [other for other in recipe.features if other.history == feature.history]
    _check_name(feature.history, f"{where}: history")
    if feature.history in by_name and (by_name[feature.history], len(columns)) != (feature, 1):
        raise UserError(f"{where}: history: {feature.history!r} is the name of a feature; give the history another")
    if feature.max_length != columns[0].max_length:
        raise UserError(
            f"{where}: max_length: {feature.max_length}, and {columns[0].max_length} of {columns[0].name!r}, which is "
            f"of the same history {feature.history!r}; give both the same"
        )
    if not feature.target:
        return
    target = by_name.get(feature.target)
    if target is None:
        raise UserError(
            f"{where}: target: there is no [[feature]] {feature.target!r}; {nearest(feature.target, by_name)}"
        )
    if target.kind != "categorical" or target.table != feature.table:
        raise UserError(
            f"{where}: target: {target.name!r} is {target.kind} of table {target.table!r}; it must be categorical and "
            f"of the sequence's table {feature.table!r}"
        )


def _check_task(recipe: Recipe, task: TaskSpec, where: str) -> None:
    parents = {other.name: other.parent for other in recipe.tasks}
    for key in ("loss", "transform"):
        if getattr(task, key) is not None and task.kind != "regression":
            raise UserError(f"{where}: {key} is for tasks of kind regression, this one is {task.kind}")
    if task.oracle is not None and task.kind != "binary":
        raise UserError(f"{where}: oracle is for tasks of kind binary, this one is {task.kind}")
    for other in recipe.tasks:
        if task.parent is not None and other.name in (task.name, task.parent) and other.kind != "binary":
            raise UserError(f"{where}: parent is between tasks of kind binary; {other.name!r} is {other.kind}")
    if task.parent is not None and task.parent not in parents:
        raise UserError(f"{where}: parent: there is no [[task]] {task.parent!r}")
    seen, ancestor = {task.name}, task.parent
    while ancestor is not None:
        if ancestor in seen:
            raise UserError(f"{where}: parent: {task.parent!r} leads back to a task already passed; break the cycle")
        seen.add(ancestor)
        ancestor = parents.get(ancestor)


def _check_split(split: SplitSpec, where: str) -> None:
    if split.by == "random" and split.column is not None:
        raise UserError(f"{where}: column is for by = 'time' or 'column'; a random split takes key = [columns]")
    if split.by != "random" and split.column is None:
        raise UserError(f"{where}: column: missing; by = {split.by!r} needs one")
    if split.by != "random" and split.key:
        raise UserError(f"{where}: key is for by = 'random'")
    if split.by == "column" and split.test is not None:
        raise UserError(f"{where}: test is for by = 'random' or 'time'; here the column says which rows are test")
    if split.by != "column" and split.val_fraction + split.test_fraction >= 1:
        raise UserError(f"{where}: val + test = {split.val_fraction + split.test_fraction:g} leaves no training rows")


def _check_unpredicted(recipe: Recipe, where: str) -> None:
    split = recipe.split
    for key, columns in (("key", split.key), ("column", (split.column,))):
        for task in recipe.tasks:
            for column in columns:
                if column is not None and column in (task.label, task.oracle):
                    raise UserError(
                        f"{where}: {key}: column {column!r} is what task {task.name!r} predicts; name another column"
                    )
