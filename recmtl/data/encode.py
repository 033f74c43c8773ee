"""From raw values to ids: vocabularies, and the query that encodes everything."""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb

from recmtl.data.dataset import NO_USER, Dataset, Feature, Table
from recmtl.data.duck import first_row, literal, quote
from recmtl.data.examples import EXAMPLES, FLOATS, HASH, INTEGERS, ROW, SPLIT
from recmtl.data.numbers import Moments, encoded_number, moments, transformed
from recmtl.data.recipe import FeatureSpec, Recipe, TableSpec
from recmtl.errors import UserError

DB = duckdb.DuckDBPyConnection
WHITESPACE = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if char.isspace())


# --- raw values ------------------------------------------------------------------------------------------------


def value_type(kind: str) -> str:
    """SQL type in which a vocabulary keeps raw values of type `kind`."""
    if kind in INTEGERS:
        return "UBIGINT" if kind == "UBIGINT" else "BIGINT"
    if kind in FLOATS:
        return "DOUBLE"
    if kind in ("BOOLEAN", "DATE") or kind.startswith("TIMESTAMP"):
        return kind
    return "VARCHAR"


def table_type(recipe: Recipe, table: TableSpec, types: dict[str, str]) -> str:
    """SQL type of the values of a table.

    Raises:
        UserError: its features have values that do not compare.
    """
    found = {feature.name: value_type(_scalar(feature, types)) for feature in recipe.features_of(table.name)}
    kinds = set(found.values())
    if len(kinds) > 1:
        listed = ", ".join(f"{name} is {kind}" for name, kind in found.items())
        raise UserError(
            f"{recipe.origin}: [[table]] {table.name!r}: its features differ in type ({listed}); cast in sql"
        )
    return kinds.pop()


def _scalar(feature: FeatureSpec, types: dict[str, str]) -> str:
    kind = types[feature.column]
    return kind[:-2] if feature.kind == "list" and not feature.separator else kind


def _value(expression: str, kind: str) -> str:
    """`expression` as a raw value of type `kind`; NaN is missing."""
    value = f"cast({expression} as {kind})"
    return f"case when isnan({value}) then null else {value} end" if kind == "DOUBLE" else value


def list_of(feature: FeatureSpec) -> str:
    """The list of a list feature, cut to its longest length."""
    column = quote(feature.column)
    if feature.separator:
        parts = f"string_split({column}, {literal(feature.separator)})"
        part = f"trim(part, {literal(WHITESPACE)})"
        column = f"[{part} for part in {parts} if {part} <> '']"
    return f"({column})[1:{feature.max_length}]" if feature.max_length else f"({column})"


# --- vocabularies ----------------------------------------------------------------------------------------------


def create_vocabulary(db: DB, recipe: Recipe, table: TableSpec, kind: str, folder: Path) -> Table:
    """Number the values of a table by descending count and write ``<table>.parquet``.

    What counts are the occurrences in the training rows, in the features of `TableSpec.count_from`.
    The file has the columns value and id, ordered by id from 1. Frequent values have low ids: near in memory.
    """
    if table.hash_rows is not None:
        return Table(table.name, table.hash_rows, table.dim, hashed=True, value_type=kind)
    where = f"where {SPLIT} = 0" if recipe.split.vocab_from == "train" else ""
    parts = []
    for feature in recipe.features_of(table.name):
        if table.count_from and feature.name not in table.count_from:
            continue
        value = f"unnest({list_of(feature)})" if feature.kind == "list" else quote(feature.column)
        parts.append(f"select {value} as raw from {EXAMPLES} {where}")
    name = _vocabulary(table.name)
    db.execute(
        f"create table {name} as select value, cast(row_number() over (order by seen desc, value) as integer) as id "
        f"from (select {_value('raw', kind)} as value, count(*) as seen from ({' union all '.join(parts)}) "
        f"group by value having value is not null and count(*) >= {table.min_count})"
    )
    path = literal(str(folder / f"{table.name}.parquet"))
    db.execute(f"copy (select value, id from {name} order by id) to {path} (format parquet)")
    row = first_row(
        db, f"select count(*), bit_xor(md5_number_lower(concat(id, ':', cast(value as varchar)))) from {name}"
    )
    assert row is not None
    return Table(table.name, row[0] + 1, table.dim, value_type=kind, vocabulary=f"{row[1] or 0:016x}")


def _vocabulary(table: str) -> str:
    return quote(f"#vocabulary {table}")


# --- features --------------------------------------------------------------------------------------------------


def describe_features(db: DB, recipe: Recipe) -> tuple[Feature, ...]:
    """What ``dataset.json`` says of the features.

    Of a list its mean length, of a number its mean and deviation if they are needed, all of the training split.
    """
    standardized = [feature for feature in recipe.features if feature.transform.endswith("standardize")]
    training = f"{EXAMPLES} where {SPLIT} = 0"
    measured = dict(zip(standardized, moments(db, [transformed(f) for f in standardized], training), strict=True))
    return tuple(_described(db, spec, measured.get(spec, Moments())) for spec in recipe.features)


def _described(db: DB, spec: FeatureSpec, found: Moments) -> Feature:
    if spec.kind == "categorical":
        return Feature(spec.name, table=spec.table, pooling=spec.pooling)
    if spec.kind == "list":
        row = first_row(db, f"select avg(coalesce(list_count({list_of(spec)}), 0)) from {EXAMPLES} where {SPLIT} = 0")
        assert row is not None
        return Feature(
            spec.name,
            "list",
            spec.table,
            spec.pooling,
            mean_length=float(f"{row[0] or 0:.6g}"),
            max_length=spec.max_length,
            separator=spec.separator,
        )
    mean, tail, std = found.mean, found.mean_tail, found.std
    return Feature(spec.name, "numeric", transform=spec.transform, mean=mean, mean_tail=tail, std=std)


# --- the encoding ----------------------------------------------------------------------------------------------


def encoding_query(recipe: Recipe, dataset: Dataset, types: dict[str, str], kinds: dict[str, str]) -> str:
    """The query that encodes the examples: `recmtl.data.shards.schema`'s columns, then `SPLIT` and `HASH`.

    Args:
        recipe: the recipe.
        dataset: what is known of its output.
        types: SQL types of the query's columns.
        kinds: SQL types of the tables' values.
    """
    encoder = _Encoder(recipe, kinds)
    columns = [encoder.feature(*pair) for pair in zip(dataset.features, recipe.features, strict=True)]
    for task, spec in zip(dataset.tasks, recipe.tasks, strict=True):
        columns.append(f"cast({quote(spec.label)} as tinyint)")
        if task.oracle and spec.oracle:
            columns.append(f"cast({quote(spec.oracle)} as float)")
    if recipe.group is not None:
        columns.append(_user(recipe.group, types[recipe.group]))
    named = ", ".join(f"{column} as c{i}" for i, column in enumerate(columns))
    return f"select {named}, {SPLIT}, {HASH} from {EXAMPLES} as e {' '.join(encoder.joins)}"


def _user(column: str, kind: str) -> str:
    """The user of a row as a number from 0; `NO_USER` where it has none."""
    name = quote(column)
    missing = f"{name} is null" + (f" or isnan({name})" if kind in FLOATS else "")
    return f"case when {missing} then {NO_USER} else cast(hash({name}) >> 1 as bigint) end"


class _Encoder:
    """SQL expressions that encode features, and the joins they need."""

    def __init__(self, recipe: Recipe, kinds: dict[str, str]) -> None:
        self.kinds = kinds
        self.tables = {table.name: table for table in recipe.tables}
        self.joins: list[str] = []

    def feature(self, feature: Feature, spec: FeatureSpec) -> str:
        if spec.kind == "numeric":
            return encoded_number(spec, Moments(feature.mean, feature.mean_tail, feature.std))
        rows = self.tables[spec.table].hash_rows
        return self._looked_up(spec) if rows is None else self._hashed(spec, rows)

    def _hashed(self, spec: FeatureSpec, rows: int) -> str:
        def hashed(value: str) -> str:
            text = f"cast({_value(value, self.kinds[spec.table])} as varchar)"
            # md5, as these ids must be the same in every version of the engine and in other programs.
            return f"cast(1 + md5_number_lower({text}) % {rows - 1} as integer)"

        if spec.kind == "list":
            return f"coalesce([{hashed('item')} for item in {list_of(spec)} if item is not null], [])"
        return f"coalesce({hashed(quote(spec.column))}, 0)"

    def _looked_up(self, spec: FeatureSpec) -> str:
        number = len(self.joins)
        vocabulary, kind = _vocabulary(spec.table), self.kinds[spec.table]
        if spec.kind == "categorical":
            value = _value(f"e.{quote(spec.column)}", kind)
            self.joins.append(f"left join {vocabulary} as j{number} on {value} = j{number}.value")
            return f"coalesce(j{number}.id, 0)"
        items = f"unnest({list_of(spec)}) as item, generate_subscripts({list_of(spec)}, 1) as place"
        lists = (
            f"select row, list(id order by place) as ids from (select {ROW} as row, {items} from {EXAMPLES}) "
            f"join {vocabulary} on {_value('item', kind)} = value group by row"
        )
        self.joins.append(f"left join ({lists}) as j{number} on e.{ROW} = j{number}.row")
        return f"coalesce(j{number}.ids, [])"
