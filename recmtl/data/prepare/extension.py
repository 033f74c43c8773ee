"""Data that is extended: what the new rows are, and what must be as it was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from recmtl.data.difference import recipe_fields
from recmtl.data.prepare.duck import first_row
from recmtl.data.prepare.examples import SPLIT_VALUE, STORED
from recmtl.data.prepare.window import Window
from recmtl.data.recipe import Recipe
from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError
from recmtl.schema import ENCODER, Dataset, Task


@dataclass(frozen=True)
class Extend:
    """What `recmtl prepare` is asked to extend."""

    folder: Path
    """The prepared folder."""
    since: str | None = None
    """The first moment of the new rows; None: they are those after the folder's last moment."""
    lookback: str | None = None
    """How far the query sees before `since`, or the folder's last moment; None: all that there is."""
    val: float = 0.0
    """Share of the new rows, the last ones by time, that validate."""
    test: float = 0.0
    """The same for testing."""


class Extension:
    """A prepared folder whose encoding is to grow by the rows after it.

    Args:
        recipe: of the new rows.
        asked: what to extend, and how.

    Raises:
        UserError: the folder cannot be extended by the recipe.
    """

    def __init__(self, recipe: Recipe, asked: Extend) -> None:
        self.asked, self.folder = asked, asked.folder
        self.dataset = dataset = Dataset.load(asked.folder)
        where = f"--extend {asked.folder}"
        if recipe.split.by != "time":
            raise UserError(
                f"{recipe.origin}: [split]: by = {recipe.split.by!r} tells no new rows from old ones; --extend needs "
                "by = 'time'"
            )
        if dataset.limit is not None:
            raise UserError(f"{where}: holds a part of the raw rows (--limit); extend data of all of them")
        if not dataset.until:
            raise UserError(f"{where}: does not say up to which moment it goes; prepare it with by = 'time'")
        names = [task.name for task in recipe.tasks]
        if names != [task.name for task in dataset.tasks]:
            before = ", ".join(task.name for task in dataset.tasks)
            raise UserError(f"{where}: has the tasks {before}, not {', '.join(names)}")
        if asked.val + asked.test >= 1:
            raise UserError(f"--val and --test: {asked.val + asked.test:g} leaves no training rows")
        self.recipe = replace(recipe, split=replace(recipe.split, val=asked.val, test=asked.test))
        """The recipe, with the shares of the new rows."""
        self.encoder = Encoder.load(asked.folder / ENCODER)

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise UserError unless recipe and raw files give the features, tables and types that the folder has."""
        before, now = recipe_fields(self.dataset.features), recipe_fields(encoder.features)
        keeps = "an encoding that grows keeps features and tables; leave it as it was, or prepare anew without --extend"
        for name in (*before, *now):
            where = f"{self.recipe.origin}: [[feature]] {name!r}"
            if name not in before:
                raise UserError(f"{where} is not in {self.folder}: {keeps}")
            if name not in now:
                raise UserError(f"{where} is missing, and {self.folder} has it: {keeps}")
            if changed := [key for key in before[name] if before[name][key] != now[name][key]]:
                old, new = (features[name][changed[0]] for features in (before, now))
                raise UserError(f"{where}: {changed[0]} is {new!r}, in {self.folder} it is {old!r}: {keeps}")
        if moved := [name for name, other in zip(now, before, strict=True) if name != other]:
            raise UserError(f"{self.recipe.origin}: [[feature]] {moved[0]!r} is in another place: {keeps}")
        tables = {table.name: table for table in self.dataset.tables}
        for spec in self.recipe.tables:
            table = tables[spec.name]
            kept = {"dim": (table.dim, spec.dim), "hash_rows": (table.rows if table.hashed else None, spec.hash_rows)}
            for key, (old, new) in kept.items():
                if old != new:
                    where = f"{self.recipe.origin}: [[table]] {spec.name!r}"
                    was, now_is = (f"has {key} {value}" if value else f"has no {key}" for value in (old, new))
                    raise UserError(f"{where} {now_is}, in {self.folder} it {was}: {keeps}")
        for name in encoder.schema.names:
            old_type, new_type = (of.schema.field(name).type for of in (self.encoder, encoder))
            if old_type != new_type:
                where = f"{self.recipe.origin}: column {name!r}"
                raise UserError(f"{where} is {new_type}, in {self.folder} {old_type}; cast it in sql")

    @property
    def lineage(self) -> tuple[str, ...]:
        """Of the data that is made."""
        return (*self.dataset.lineage, self.dataset.encoding_fingerprint)

    def check_not_empty(self, rows: int, unlabelled: int, where: str) -> None:
        """Raise UserError if there are no new rows, with labels or without, between the moments that `where` names."""
        if not rows and not unlabelled:
            raise UserError(f"--extend {self.folder}: the raw files have no rows {where}, by which to extend it")

    def window(self, until: str | None, lookahead: str | None) -> Window:
        """Where the new rows lie.

        Args:
            until: the moment that they are before; None: no such moment.
            lookahead: how far the query sees from `until` on.

        Raises:
            UserError: `lookahead` is given and `until` is not.
        """
        since, lookback = self.asked.since, self.asked.lookback
        after = self.dataset.until if since is None else None
        return Window(self.recipe, since=since, after=after, until=until, lookback=lookback, lookahead=lookahead)

    def tasks(self, tasks: Iterable[Task]) -> tuple[Task, ...]:
        """New rows' tasks in the scale and with the meaning that the folder's have."""
        before = {task.name: task for task in self.dataset.tasks}
        kept = ("mean", "std", "conditional")
        return tuple(replace(task, **{key: getattr(before[task.name], key) for key in kept}) for task in tasks)


def last_moment(db: duckdb.DuckDBPyConnection, recipe: Recipe) -> str:
    """Last moment of the stored rows as text; empty unless rows are split by time."""
    if recipe.split.by != "time":
        return ""
    row = first_row(db, f"select cast(max({SPLIT_VALUE}) as varchar) from {STORED}")
    return str(row[0]) if row else ""
