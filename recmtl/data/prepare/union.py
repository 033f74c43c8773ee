"""One view of files whose columns differ: every value is exactly what its file holds, or the column is refused."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from recmtl.data.prepare.duck import quote, refused_column
from recmtl.data.prepare.footers import Schema, first_beyond, fold
from recmtl.data.prepare.types import NULL, limit, unify


@dataclass(frozen=True)
class Column:
    """A column of several schemas."""

    name: str
    """As the first file writes it."""
    sql_type: str
    refusal: str = ""
    """Why no type holds all its values."""

    def sql_for(self, schema: Schema) -> str:
        """SQL of this column in files of a schema."""
        own = {fold(name): name for name in schema.types}.get(fold(self.name))
        if self.refusal:
            return refused_column(self.refusal)
        if own is None or schema.types[own] == NULL:
            return "null"
        return quote(own) if schema.types[own] == self.sql_type else f"cast({quote(own)} as {self.sql_type})"


def unite(schemas: list[Schema]) -> list[Column]:
    """The columns of all schemas, in the order in which they first appear."""
    first_names: dict[str, str] = {}
    for name in (name for schema in schemas for name in schema.types):
        first_names.setdefault(fold(name), name)
    return [_column(name, having(schemas, name)) for name in first_names.values()]


def having(schemas: list[Schema], column: str) -> list[tuple[Schema, int, str]]:
    """The schemas that have a column, with its place and its type there."""
    found = []
    for schema in schemas:
        places = {fold(name): place for place, name in enumerate(schema.types)}
        if (place := places.get(fold(column))) is not None:
            found.append((schema, place, list(schema.types.values())[place]))
    return found


def _column(name: str, parts: list[tuple[Schema, int, str]]) -> Column:
    # A file without rows has no values that a type must hold.
    parts = [part for part in parts if part[0].rows] or parts[:1]
    by_type: dict[str, Path] = {}
    for schema, _, sql_type in parts:
        by_type.setdefault(sql_type, schema.files[0])
    target = unify(by_type)
    if target is None:
        return Column(name, NULL, _no_type(name, by_type))
    for schema, place, sql_type in parts:
        most = limit(sql_type, target)
        path = None if most is None else first_beyond(schema.files, place, most)
        if path is not None:
            reason = f"whose values in {path}, as its footer says, {target} may not hold exactly"
            other = next(other for other in by_type if other != sql_type)
            return Column(name, NULL, _line(name, {sql_type: path, other: by_type[other]}, reason))
    return Column(name, target)


def _no_type(name: str, by_type: dict[str, Path]) -> str:
    for sql_type, path in by_type.items():
        if unify([sql_type]) is None:
            return f"column {name!r} is {sql_type} in {path}, and would be rounded; write it with fewer"
    pairs = combinations(by_type, 2)
    pair = next((pair for pair in pairs if unify(pair) is None), tuple(by_type))
    return _line(
        name, {sql_type: by_type[sql_type] for sql_type in pair}, "and no type holds the values of all exactly"
    )


def _line(name: str, by_type: dict[str, Path], reason: str) -> str:
    """Which files have a column of which types, and what to do."""
    types = " and ".join(f"{sql_type} in {path}" for sql_type, path in by_type.items())
    remedy = "write files anew with one type, or make each type a source and join them in sql"
    return f"column {name!r} is {types}, {reason}; {remedy}"
