"""A row whose history has columns of several lengths is named so that its user finds it, by `prepare` and `predict`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from histories import RECIPE, raw_rows
from new_rows import read_new_rows
from prepared import run
from trained import write_raw

from recmtl.data.prepare import partitions
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import Recipe, load_recipe
from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError
from recmtl.schema import Dataset

ROWS, WRONG, PARTITION = 40, 37, 10
AS_THEY_ARE = "select * from raw where number <> 12"
COMPUTED = """
select * exclude (last_brands, last_items, filename, file_row_number),
    list_transform(last_brands, lambda b: upper(b)) as last_brands, list_reverse(last_items) as last_items
from raw
where number <> 12
"""
PLACED = COMPUTED.replace(", filename, file_row_number)", ")")
FILE = r"row 17 \(counted from 0\) of 1.parquet"
VALUES = "the row with user = 7, item = 3, brand = 'brand 3', price = 2.5"
BY_TIME = "the row with user = 7, number = 37, item = 3, brand = 'brand 3'"


def wrong_rows() -> pa.Table:
    rows = raw_rows(ROWS).to_pylist()
    last = {"last_items": [1, 2, 3], "last_brands": ["brand 1"] * 2, "last_actions": ["view"] * 3}
    rows[WRONG] |= {"user": 7, "item": 3, "brand": "brand 3", "price": 2.5, **last}
    return pa.Table.from_pylist(rows, raw_rows(1).schema)


def recipe_of(folder: Path, sql: str, *, by_time: bool) -> Recipe:
    split = '[split]\nby = "time"\ncolumn = "number"\n' if by_time else "[split]\n"
    text = RECIPE.replace('"select * from raw"', f"'''{sql}'''").replace("[split]\n", split)
    source = '[sources.raw]\nfiles = ["*.parquet"]\npartition_by = "user"\n'
    (folder / "mine.toml").write_text(text.replace("[[table]]", f"{source}[[table]]", 1))
    return load_recipe(str(folder / "mine.toml"))


def by_prepare(recipe: Recipe, folder: Path) -> None:
    prepare(recipe, folder / "raw", folder / "out")


def by_predict(recipe: Recipe, folder: Path) -> None:
    """The rows that `recmtl predict` scores, for a model of other rows."""
    write_raw(folder / "known", raw_rows(200))
    prepare(recipe, folder / "known", folder / "data")
    encoder, known = Encoder.load(folder / "data" / "encoder"), Dataset.load(folder / "data").source_columns
    (folder / "spill").mkdir()
    read_new_rows(recipe, folder / "raw", encoder, known, folder / "spill" / "engine")


@pytest.mark.parametrize("rows_at_once", [ROWS, PARTITION])
@pytest.mark.parametrize("command", [by_prepare, by_predict])
@pytest.mark.parametrize(
    ("sql", "by_time", "named"),
    [
        (AS_THEY_ARE, False, FILE),  # both columns are a source's
        (COMPUTED, False, VALUES),
        (COMPUTED, True, BY_TIME),
    ],
)
def test_the_row_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[[Recipe, Path], None],
    sql: str,
    by_time: bool,
    named: str,
    rows_at_once: int,
) -> None:
    """Whatever the query leaves out before it, and partition by partition too."""
    monkeypatch.setattr(partitions, "PARTITION_ROWS", rows_at_once)
    write_raw(tmp_path / "raw", wrong_rows())
    recipe = recipe_of(tmp_path, sql, by_time=by_time)
    said = rf"mine.toml: sql yields rows with history 'before' misaligned in {named}: column "
    said += "'last_brands' has 2 items and column 'last_actions' 3; .*, null where there is no value$"
    with pytest.raises(UserError, match=said):
        command(recipe, tmp_path)
    assert not (tmp_path / "out").exists()


def test_predictions_name_the_place_that_the_query_yields(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", wrong_rows())
    with pytest.raises(UserError, match=rf"misaligned in {FILE}: column 'last_brands' has 2 items"):
        by_predict(recipe_of(tmp_path, PLACED, by_time=False), tmp_path)


def test_a_row_without_any_value_has_its_number(tmp_path: Path) -> None:
    feature = '[[feature]]\nname = "{}"\nkind = "sequence"\nhistory = "before"\n'
    text = "sql = '''select last_items, list_transform(last_actions, lambda a: 1) as doing, clicked from raw'''\n"
    text += feature.format("last_items") + feature.format("doing") + '[[task]]\nname = "c"\nlabel = "clicked"\n'
    rows = wrong_rows().to_pylist()
    rows[5] |= {"last_items": [1], "last_actions": ["view"] * 2}
    table = pa.Table.from_pylist(rows, raw_rows(1).schema)
    with pytest.raises(UserError, match=r"misaligned in row 5 \(counted from 0\): column 'doing' has 2 items and"):
        run(tmp_path, table, text)
