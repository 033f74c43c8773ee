"""From raw values to ids: vocabularies, statistics of numbers, labels, and the query that encodes everything."""

from __future__ import annotations

from pathlib import Path

import duckdb

from recmtl.data.dataset import Dataset, Feature, Table
from recmtl.data.duck import first_row, literal, quote
from recmtl.data.examples import EXAMPLES, FLOATS, HASH, INTEGERS, ROW, SPLIT
from recmtl.data.recipe import FeatureSpec, Recipe, TableSpec
from recmtl.errors import UserError

DB = duckdb.DuckDBPyConnection
FLOAT32_MAX = 3.4e38


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


def _list(feature: FeatureSpec) -> str:
    """The list of a list feature, cut to its longest length."""
    column = quote(feature.column)
    if feature.separator:
        parts = f"string_split({column}, {literal(feature.separator)})"
        column = f"[trim(part) for part in {parts} if trim(part) <> '']"
    return f"({column})[1:{feature.max_length}]" if feature.max_length else f"({column})"


# --- vocabularies ----------------------------------------------------------------------------------------------


def create_vocabulary(db: DB, recipe: Recipe, table: TableSpec, kind: str, folder: Path) -> Table:
    """Number the values of a table by descending count and write ``<table>.parquet``.

    The file has the columns value and id, ordered by id from 1. Frequent values have low ids: near in memory.
    """
    if table.hash_rows is not None:
        return Table(table.name, table.hash_rows, table.dim, hashed=True, value_type=kind)
    where = f"where {SPLIT} = 0" if recipe.split.vocab_from == "train" else ""
    parts = []
    for feature in recipe.features_of(table.name):
        value = f"unnest({_list(feature)})" if feature.kind == "list" else quote(feature.column)
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


# --- numbers ---------------------------------------------------------------------------------------------------


def _transformed(feature: FeatureSpec) -> str:
    """The number after log1p, null where it is missing or not finite."""
    number = f"cast({quote(feature.column)} as double)"
    finite = f"case when abs({number}) < {FLOAT32_MAX} then {number} end"
    return f"sign({finite}) * ln(1 + abs({finite}))" if feature.transform.startswith("log1p") else finite


def describe_feature(db: DB, feature: FeatureSpec) -> Feature:
    """What ``dataset.json`` says of a feature.

    Of a list its mean length, of a number its mean and deviation if they are needed, all of the training split.
    """
    if feature.kind == "categorical":
        return Feature(feature.name, table=feature.table, pooling=feature.pooling)
    if feature.kind == "list":
        row = first_row(db, f"select avg(coalesce(list_count({_list(feature)}), 0)) from {EXAMPLES} where {SPLIT} = 0")
        assert row is not None
        return Feature(
            feature.name,
            "list",
            feature.table,
            feature.pooling,
            mean_length=float(f"{row[0] or 0:.6g}"),
            max_length=feature.max_length,
            separator=feature.separator,
        )
    mean, std = 0.0, 1.0
    if feature.transform.endswith("standardize"):
        query = (
            f"select avg(x), stddev_pop(x) from (select {_transformed(feature)} as x from {EXAMPLES} where {SPLIT} = 0)"
        )
        row = first_row(db, query)
        assert row is not None
        # Rounded, as the last digits of a sum depend on the number of threads.
        mean, std = (float(f"{value or 0:.6g}") for value in row)
    return Feature(feature.name, "numeric", transform=feature.transform, mean=mean, std=std or 1.0)


# --- the encoding ----------------------------------------------------------------------------------------------


def encoding_query(recipe: Recipe, dataset: Dataset, kinds: dict[str, str]) -> str:
    """The query that encodes the examples: `recmtl.data.shards.schema`'s columns, then `SPLIT` and `HASH`."""
    encoder = _Encoder(recipe, kinds)
    columns = [encoder.feature(*pair) for pair in zip(dataset.features, recipe.features, strict=True)]
    for task, spec in zip(dataset.tasks, recipe.tasks, strict=True):
        columns.append(f"cast({quote(spec.label)} as tinyint)")
        if task.oracle and spec.oracle:
            columns.append(f"cast({quote(spec.oracle)} as float)")
    if recipe.group is not None:
        columns.append(f"cast(hash({quote(recipe.group)}) >> 1 as bigint)")
    named = ", ".join(f"{column} as c{i}" for i, column in enumerate(columns))
    return f"select {named}, {SPLIT}, {HASH} from {EXAMPLES} as e {' '.join(encoder.joins)}"


class _Encoder:
    """SQL expressions that encode features, and the joins they need."""

    def __init__(self, recipe: Recipe, kinds: dict[str, str]) -> None:
        self.kinds = kinds
        self.tables = {table.name: table for table in recipe.tables}
        self.joins: list[str] = []

    def feature(self, feature: Feature, spec: FeatureSpec) -> str:
        if spec.kind == "numeric":
            return f"cast(coalesce(({_transformed(spec)} - {feature.mean!r}) / {feature.std!r}, 0) as float)"
        rows = self.tables[spec.table].hash_rows
        return self._looked_up(spec) if rows is None else self._hashed(spec, rows)

    def _hashed(self, spec: FeatureSpec, rows: int) -> str:
        def hashed(value: str) -> str:
            text = f"cast({_value(value, self.kinds[spec.table])} as varchar)"
            # md5, as these ids must be the same in every version of the engine and in other programs.
            return f"cast(1 + md5_number_lower({text}) % {rows - 1} as integer)"

        if spec.kind == "list":
            return f"coalesce([{hashed('item')} for item in {_list(spec)} if item is not null], [])"
        return f"coalesce({hashed(quote(spec.column))}, 0)"

    def _looked_up(self, spec: FeatureSpec) -> str:
        number = len(self.joins)
        vocabulary, kind = _vocabulary(spec.table), self.kinds[spec.table]
        if spec.kind == "categorical":
            value = _value(f"e.{quote(spec.column)}", kind)
            self.joins.append(f"left join {vocabulary} as j{number} on {value} = j{number}.value")
            return f"coalesce(j{number}.id, 0)"
        items = f"unnest({_list(spec)}) as item, generate_subscripts({_list(spec)}, 1) as place"
        lists = (
            f"select row, list(id order by place) as ids from (select {ROW} as row, {items} from {EXAMPLES}) "
            f"join {vocabulary} on {_value('item', kind)} = value group by row"
        )
        self.joins.append(f"left join ({lists}) as j{number} on e.{ROW} = j{number}.row")
        return f"coalesce(j{number}.ids, [])"
