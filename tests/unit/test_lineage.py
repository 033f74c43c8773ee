"""Which columns of the raw files a column of a query depends on: no more, and never fewer."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from recmtl.data.prepare.duck import quote
from recmtl.data.prepare.lineage import columns_behind
from recmtl.data.recipe import Recipe, load_recipe

RAW = {"user": "VARCHAR", "item": "BIGINT", "at": "TIMESTAMP", "label": "BIGINT", "tags": "BIGINT[]"}
ITEMS = {"item": "BIGINT", "price": "DOUBLE", "colour": "VARCHAR"}


def recipe_of(folder: Path, sql: str, sources: dict[str, dict]) -> Recipe:
    features = [{"name": "x"}]
    text = {"sql": sql, "sources": sources, "feature": features, "task": [{"name": "t", "label": "y"}]}
    (folder / "recipe.toml").write_text(tomli_w.dumps(text))
    return load_recipe(str(folder / "recipe.toml"))


def behind(folder: Path, sql: str, derived: str = "") -> dict[str, str]:
    """By column of the query, what it depends on, in order: of raw by the name, of items as items.NAME."""
    sources: dict[str, dict] = {name: {"files": ["*.parquet"]} for name in ("raw", "items")}
    sources |= {"derived": {"sql": derived}} if derived else {}
    with duckdb.connect() as db:
        for name, columns in (("raw", RAW), ("items", ITEMS)):
            db.execute(f"create table {name} ({', '.join(f'{quote(c)} {kind}' for c, kind in columns.items())})")
        if derived:
            db.execute(f"create view derived as {derived}")
        names = [name for name, *_ in db.execute(f"describe {sql}").fetchall()]
    found = columns_behind(recipe_of(folder, sql, sources), {"raw": RAW, "items": ITEMS}, names)
    order = [("raw", name) for name in RAW] + [("items", name) for name in ITEMS]
    return {
        column: " ".join(
            name if source == "raw" else f"items.{name}" for source, name in order if (source, name) in own
        )
        for column, own in found.items()
    }


CASES = {
    "plain": (
        """select "user", item + 1 as next, label from raw""",
        {"user": "user", "next": "item", "label": "label"},
    ),
    "star": ("select * from raw", {name: name for name in RAW}),
    "constant": ("select 1 as one, item from raw", {"one": "", "item": "item"}),
    "where": (
        """select "user", item from raw where label = 1""",
        {"user": "user label", "item": "item label"},
    ),
    "case": ("select case when label = 1 then item end as liked from raw", {"liked": "item label"}),
    "window": (
        """select item, lag(item) over (partition by "user" order by "at") as previous, label from raw""",
        {"item": "item", "previous": "user item at", "label": "label"},
    ),
    "named window": (
        """select item, list(label) over w as before from raw window w as (partition by "user" order by "at")""",
        {"item": "item", "before": "user at label"},
    ),
    "qualify": (
        """select item from raw qualify row_number() over (partition by "user" order by "at") = 1""",
        {"item": "user item at"},
    ),
    "join": (
        "select raw.item, price, label from raw join items using (item)",
        {"item": "item items.item", "price": "item items.item items.price", "label": "item label items.item"},
    ),
    "left join": (
        "select label, colour from raw left join items on raw.item = items.item",
        {"label": "item label items.item", "colour": "item items.item items.colour"},
    ),
    "aggregates": (
        """select "user", sum(label) as likes, count(*) as n from raw group by "user" having max(item) > 3""",
        {"user": "user item", "likes": "user item label", "n": "user item"},
    ),
    "cte": (
        """with seen as (select "user", item, label, row_number() over (order by "at") as n from raw)
        select a.item, b.label as before from seen a left join seen b on a.n = b.n + 1""",
        {"item": "item at", "before": "at label"},
    ),
    "union": (
        """select item, label from raw union all select item, null from items""",
        {"item": "item items.item", "label": "label"},
    ),
    "union distinct": (
        """select item, label from raw union select item, 0 from items""",
        {"item": "item label items.item", "label": "item label items.item"},
    ),
    # DuckDB runs such subqueries whether they are read or not: more than the truth, never less.
    "subquery": (
        "select item, (select max(price) from items where colour <> 'red') as most from raw",
        {"item": "item items.colour", "most": "items.price items.colour"},
    ),
    "in": (
        """select item, "user" in (select colour from items) as odd from raw""",
        {"item": "user item items.colour", "odd": "user items.colour"},
    ),
    "exists": (
        "select label from raw where exists (select 1 from items where items.item = raw.item)",
        {"label": "item label items.item"},
    ),
    "unnest": ("select label, unnest(tags) as tag from raw", {"label": "label tags", "tag": "tags"}),
    "limit": ("""select item from raw order by "at" limit 3""", {"item": "item at"}),
    "distinct": ("""select distinct on ("user") item from raw order by "user", "at" """, {"item": "user item at"}),
    "odd names": (
        """select item as "a ""b"" c", label as "select", "user" as "#ü@column 0@" from raw""",
        {'a "b" c': "item", "select": "label", "#ü@column 0@": "user"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_query(tmp_path, case):
    sql, wanted = CASES[case]
    assert behind(tmp_path, sql) == wanted


def test_derived_sources(tmp_path):
    derived = """select "user", item, lag(label) over (partition by "user" order by "at") as liked_before from raw"""
    found = behind(tmp_path, """select item, liked_before, "user" from derived""", derived)
    assert found == {"item": "item", "liked_before": "user at label", "user": "user"}


def test_columns_of_files_with_odd_names(tmp_path):
    names = ['a"b', "a b", "ÄÖ", "select", "@column 3@", "'; drop", "x.y"]
    sql = "select " + ", ".join(f"{quote(name)} as c{i}" for i, name in enumerate(names))
    recipe = recipe_of(tmp_path, f"{sql} from raw", {"raw": {"files": ["*.parquet"]}})
    columns = [f"c{i}" for i in range(len(names))]
    found = columns_behind(recipe, {"raw": dict.fromkeys(names, "BIGINT")}, columns)
    assert found == {f"c{i}": {("raw", name)} for i, name in enumerate(names)}


COLUMNS = ("a", "b", "c", "d")
VALUE = st.sampled_from(COLUMNS)
CONDITION = st.builds(
    "{} {} {}".format, VALUE, st.sampled_from(["=", "<", "is distinct from"]), st.sampled_from(["1", "2", *COLUMNS])
)
EXPRESSION = st.one_of(
    VALUE,
    st.sampled_from(
        ["1", "null", "a + b", "a - a", "b * 0", "coalesce(c, d)", "coalesce(1, a)", "d is null or d is not null"]
    ),
    st.builds("case when {} then {} else {} end".format, CONDITION, VALUE, VALUE),
    st.builds("sum({}) over (partition by {} order by {})".format, VALUE, VALUE, VALUE),
    st.builds("count({}) over ()".format, VALUE),
    st.builds("(select max({}) from s where s.{} = t.{})".format, VALUE, VALUE, VALUE),
)
ROWS_OF = st.one_of(
    st.sampled_from(["r", "s"]),
    st.builds("(select * from r where {})".format, CONDITION),
    st.builds("(select * from r union all select * from s where {})".format, CONDITION),
    st.builds("(select * from r union select d, c, b, a from s)".format),
    st.builds("(select max({}) as a, {} as b, min({}) as c, count(*) as d from r group by all)".format, *[VALUE] * 3),
    st.builds(
        "(select r.a, s.b, r.c, s.d from r {} join s on r.{} = s.{})".format,
        st.sampled_from(["", "left", "full"]),
        VALUE,
        VALUE,
    ),
    st.builds("(select distinct {} as a, b, c, d from r)".format, VALUE),
    st.builds("(select * from r where {} in (select {} from s))".format, VALUE, VALUE),
    st.builds("(select * from r qualify rank() over (partition by {} order by {}) = 1)".format, VALUE, VALUE),
)
QUERY = st.builds(
    "{}select {} as x, {} as y, {} as z from {} t{}".format,
    st.sampled_from(["", "with r as (select * from r), s as (select b as a, a as b, c, d from s) "]),
    *[EXPRESSION] * 3,
    ROWS_OF,
    st.one_of(st.just(""), CONDITION.map(lambda condition: f" where {condition}")),
)
CELL = st.one_of(st.none(), st.integers(0, 2))
TABLE = st.lists(st.tuples(*[CELL] * len(COLUMNS)), min_size=1, max_size=5)


def fill(db: duckdb.DuckDBPyConnection, tables: dict[str, list[tuple]], hidden: tuple[str, str] | None) -> None:
    """Make the tables; of the hidden column only nulls are there."""
    for name, rows in tables.items():
        shown = [[None if hidden == (name, c) else v for c, v in zip(COLUMNS, row, strict=True)] for row in rows]
        cells = ", ".join(f"({', '.join('null' if v is None else str(v) for v in row)})" for row in shown)
        types = ", ".join(f"{column}::bigint as {column}" for column in COLUMNS)
        db.execute(f"create or replace table {name} as select {types} from (values {cells}) v({', '.join(COLUMNS)})")


@settings(max_examples=40, deadline=None)
@given(QUERY, TABLE, TABLE)
def test_columns_that_are_not_behind_may_be_null(tmp_path_factory, sql, r, s):
    folder = tmp_path_factory.mktemp("recipe")
    sources = {name: {"files": ["*.parquet"]} for name in ("r", "s")}
    known = {name: dict.fromkeys(COLUMNS, "BIGINT") for name in ("r", "s")}
    found = columns_behind(recipe_of(folder, sql, sources), known, ("x", "y", "z"))
    with duckdb.connect(config={"threads": 1}) as db:
        fill(db, {"r": r, "s": s}, None)
        whole = db.execute(f"select x, y, z from ({sql})").fetchall()
        for hidden in ((name, column) for name in ("r", "s") for column in COLUMNS):
            kept = [place for place, sources_of in enumerate(found.values()) if hidden not in sources_of]
            if not kept:
                continue
            fill(db, {"r": r, "s": s}, hidden)
            rows = db.execute(f"select x, y, z from ({sql})").fetchall()
            # Together: they are columns of the same rows.
            kept_of = [sorted(repr([row[place] for place in kept]) for row in some) for some in (rows, whole)]
            assert kept_of[0] == kept_of[1], hidden
