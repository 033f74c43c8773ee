"""The order of the rows of a recipe's query: the query's own where it has one, else one that threads do not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from new_rows import read_new_rows

from recmtl.data.prepare import partitions
from recmtl.data.prepare.duck import connect
from recmtl.data.prepare.order import has_order
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.encoding.encoder import Encoder
from recmtl.schema import Dataset

QUERIES = {
    "select item + 1 as next from raw where item > 3": True,
    "select *, unnest([1, 2]) from raw": True,
    "select * from raw union all select * from raw": True,
    "select *, row_number() over () from raw": True,
    "select * from raw limit 10": True,
    "select *, lag(item) over (partition by item order by number) as l from raw order by number": True,
    "select item, count(*) as n from raw group by item order by n limit 3": True,
    "select * from (select * from raw order by number) where item > 3": True,
    "select *, lag(item) over (partition by item order by number) as l from raw": False,
    "select item, count(*) as n from raw group by item": False,
    "select distinct item from raw": False,
    "select * from raw join raw as other using (number)": False,
    "select * from (select * from raw order by number) join raw as other using (number)": False,
    "select item, lag(item) over (order by number) as l from raw union all select item, item from raw": False,
}


@pytest.mark.parametrize(("query", "ordered"), QUERIES.items())
def test_the_plan_tells_whether_rows_have_an_order(tmp_path: Path, query: str, ordered: bool) -> None:
    for name in ("0", "1"):
        pq.write_table(pa.table({"item": [1, 5, 3], "number": [4, 2, 6]}), tmp_path / f"{name}.parquet")
    with connect("1GB", 2, tmp_path / "spill", ordered=True) as db:
        db.execute(f"create view raw as from read_parquet('{tmp_path}/*.parquet', file_row_number = true)")
        db.execute(f"create view query as {query}")
        assert has_order(db, "query") == ordered


ROWS = 300_000
USERS = 5000
RECIPE = """
sql = '''
select {columns} "user", item, seen, number, clicked,
    lag(item) over (partition by "user" order by seen, number) as previous
from raw
'''
sources.raw = {{ files = ["*.parquet"], partition_by = "user" }}
[[feature]]
name = "item"
[[feature]]
name = "previous"
[[task]]
name = "click"
label = "clicked"
[split]
{split}
val = 0.2
test = 0.2
"""
PLACE, TIME = "filename, file_row_number,", 'by = "time"\ncolumn = "seen"'


def raw_rows(rows: int) -> pa.Table:
    """Several rows of every moment, which have no order among them but that of the files."""
    rng = np.random.default_rng(rows)
    return pa.table(
        {
            "user": rng.integers(0, USERS, rows),
            "item": rng.integers(0, 20, rows),
            "seen": rng.integers(0, rows // 4, rows),
            "number": np.arange(rows),
            "clicked": rng.integers(0, 2, rows),
        }
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    table = raw_rows(ROWS)
    for number, start in enumerate(range(0, ROWS, ROWS // 3)):
        pq.write_table(table.slice(start, ROWS // 3), folder / f"{number}.parquet", row_group_size=20_000)
    return folder


@pytest.mark.parametrize(
    ("columns", "split", "order"),
    [(PLACE, TIME, ["number"]), ("", TIME, ["seen"]), ("", 'by = "random"', [])],
    ids=["place", "time", "hash"],
)
@pytest.mark.parametrize("rows_at_once", [ROWS, ROWS // 3])
def test_threads_do_not_change_the_order(
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
    split: str,
    order: list[str],
    rows_at_once: int,
) -> None:
    """Whether all rows are there at once, or partition after partition; in each of them they are in the order."""
    monkeypatch.setattr(partitions, "PARTITION_ROWS", rows_at_once)
    (tmp_path / "known").mkdir()
    pq.write_table(raw_rows(1000), tmp_path / "known" / "0.parquet")
    (tmp_path / "mine.toml").write_text(RECIPE.format(columns=columns, split=split))
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    prepare(recipe, tmp_path / "known", tmp_path / "data")
    encoder, known = Encoder.load(tmp_path / "data" / "encoder"), Dataset.load(tmp_path / "data").source_columns

    def rows(threads: int, *keep: str) -> pa.Table:
        spill = tmp_path / f"spill of {threads}"
        spill.mkdir(exist_ok=True)
        options = {"keep": keep, "memory_limit": "2GB", "threads": threads}
        return read_new_rows(recipe, raw, encoder, known, spill / "engine", **options)

    names = ("user", "number", "seen")
    found = rows(4, *names)
    for _ in range(2):
        assert rows(4, *names).equals(found)
    assert rows(1, *names).equals(found)
    assert sorted(found["number"].to_pylist()) == list(range(ROWS))
    assert rows(3)["item"].equals(found["item"])  # whatever is kept, what the model reads comes in one order
    for name in order:
        falling = int((np.diff(found[name].to_numpy()) < 0).sum())
        assert falling == ROWS // rows_at_once - 1
