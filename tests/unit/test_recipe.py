"""Recipes: what is packaged, what a file may say, and one message for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from recmtl.data.recipe import load_recipe, recipe_names
from recmtl.errors import UserError

GOOD = """
sql = "select * from raw"
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "previous"
table = "item"
[[task]]
name = "click"
label = "clicked"
[[task]]
name = "like"
label = "liked"
parent = "click"
"""
TABLE_ITEM = '[[table]]\nname = "item"\n'


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_packaged_recipes_load() -> None:
    assert {"census", "kuairand", "merrec"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert "\n" not in recipe.description


def test_merrec_follows_the_published_protocol() -> None:
    recipe = load_recipe("merrec")
    assert len(recipe.features) == 18
    assert [feature.name for feature in recipe.features_of("product")] == [
        "product_id",
        *(f"hist_{i}" for i in range(1, 8)),
    ]
    view, like = recipe.tasks
    assert (view.name, like.name, like.parent, like.relation) == ("view", "like", "view", "given_not")


@pytest.mark.parametrize("name", ["census", "kuairand"])
def test_nothing_known_only_afterwards_is_a_feature(name: str) -> None:
    later = {"play_time_ms", "profile_stay_time", "comment_stay_time", "income_50k", "marital_stat", "instance_weight"}
    assert not later & {feature.column for feature in load_recipe(name).features}


def test_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD + TABLE_ITEM))
    assert recipe.name == "mine"
    assert [source.files for source in recipe.sources] == [("**/*.parquet",)]
    assert [(table.name, table.min_count) for table in recipe.tables] == [("item", 1), ("user", 1)]
    assert (recipe.split.by, recipe.split.val_fraction, recipe.split.test_fraction) == ("random", 0.1, 0.1)


def test_extends_replaces_sections(tmp_path: Path) -> None:
    write(tmp_path, GOOD + TABLE_ITEM, "base.toml")
    child = load_recipe(write(tmp_path, 'extends = "base.toml"\n[split]\nby = "time"\ncolumn = "at"\n', "child.toml"))
    assert (child.name, child.split.by, len(child.features)) == ("child", "time", 3)
    assert load_recipe("merrec_time").sql == load_recipe("merrec").sql


MISTAKES = [
    # what is wrong, text, what the message names
    ("unknown key", GOOD + 'grup = "user"\n', ["[[task]] 'like'", "'grup'"]),
    ("unknown top key", 'grup = "user"\n' + GOOD, ["unknown key 'grup'", "did you mean 'group'"]),
    ("unknown feature key", GOOD + TABLE_ITEM + '[[feature]]\nname = "x"\ntabel = "item"\n', ["'tabel'", "'table'"]),
    ("not TOML", GOOD + "name = \n", ["not valid TOML", "line 17"]),
    ("no sql", GOOD.replace("sql =", "description ="), ["sql", "missing"]),
    ("no label", GOOD.replace('label = "liked"\n', ""), ["[[task]] 'like'", "label", "missing"]),
    ("wrong type", GOOD + TABLE_ITEM + 'dim = "wide"\n', ["dim", "whole number", "'wide'"]),
    ("not a choice", GOOD + TABLE_ITEM + '[[feature]]\nname = "x"\nkind = "text"\n', ["kind", "'text'", "numeric"]),
    ("no features", 'sql = "select 1"\n[[task]]\nname = "a"\nlabel = "a"\n', ["no [[feature]]"]),
    ("no tasks", 'sql = "select 1"\n[[feature]]\nname = "a"\n', ["no [[task]]"]),
    ("unused table", GOOD + TABLE_ITEM + '[[table]]\nname = "brand"\n', ["[[table]] 'brand'", "no feature uses it"]),
    (
        "undeclared table",
        GOOD.replace('"item"\n[[task', '"brand"\n[[task'),
        ["[[feature]] 'previous'", "no [[table]] 'brand'"],
    ),
    ("duplicate feature", GOOD + TABLE_ITEM + '[[feature]]\nname = "User"\n', ["[[feature]]", "twice"]),
    ("duplicate table", GOOD + TABLE_ITEM + TABLE_ITEM, ["[[table]]", "'item'", "twice"]),
    ("duplicate task", GOOD + TABLE_ITEM + '[[task]]\nname = "like"\nlabel = "x"\n', ["[[task]]", "'like'", "twice"]),
    (
        "numeric with table",
        GOOD + TABLE_ITEM + '[[feature]]\nname = "price"\nkind = "numeric"\ntable = "item"\n',
        ["'price'", "table", "numeric"],
    ),
    ("transform on ids", GOOD + TABLE_ITEM + '[[feature]]\nname = "x"\ntransform = "log1p"\n', ["'x'", "transform"]),
    ("separator on ids", GOOD + TABLE_ITEM + '[[feature]]\nname = "x"\nseparator = ","\n', ["'x'", "separator"]),
    (
        "max_length",
        GOOD + TABLE_ITEM + '[[feature]]\nname = "x"\nkind = "list"\nmax_length = 0\n',
        ["[[feature]] 'x'", "max_length: write one whole number from 1", ", not 0"],
    ),
    ("at sign", GOOD + TABLE_ITEM + '[[feature]]\nname = "a@b"\n', ["'a@b'", "not a name"]),
    ("dot", GOOD + TABLE_ITEM + '[[feature]]\nname = "a.b"\n', ["'a.b'", "not a name"]),
    ("blank", GOOD + TABLE_ITEM + '[[feature]]\nname = "a b"\n', ["'a b'", "not a name"]),
    ("reserved group", GOOD + TABLE_ITEM + '[[feature]]\nname = "group"\n', ["'group'", "reserved"]),
    ("reserved label", GOOD + TABLE_ITEM + '[[feature]]\nname = "label_click"\n', ["'label_click'", "reserved"]),
    ("reserved oracle", GOOD + TABLE_ITEM + '[[feature]]\nname = "oracle_click"\n', ["'oracle_click'", "reserved"]),
    ("label as feature", GOOD + TABLE_ITEM + '[[feature]]\nname = "x"\ncolumn = "liked"\n', ["'x'", "'like' predicts"]),
    ("unknown parent", GOOD.replace('parent = "click"', 'parent = "buy"') + TABLE_ITEM, ["[[task]] 'like'", "'buy'"]),
    (
        "parent cycle",
        GOOD.replace('label = "clicked"', 'label = "clicked"\nparent = "like"') + TABLE_ITEM,
        ["[[task]] 'click'", "cycle"],
    ),
    ("own parent", GOOD.replace('parent = "click"', 'parent = "like"') + TABLE_ITEM, ["[[task]] 'like'", "cycle"]),
    ("negative weight", GOOD + "weight = -1\n" + TABLE_ITEM, ["[[task]] 'like'", "weight", "-1"]),
    (
        "val out of range",
        GOOD + TABLE_ITEM + "[split]\nval = 1.5\n",
        ["split.val: ", "from 0 to below 1, not 1.5"],
    ),
    ("no training rows", GOOD + TABLE_ITEM + "[split]\nval = 0.5\ntest = 0.5\n", ["[split]", "no training rows"]),
    ("time without column", GOOD + TABLE_ITEM + '[split]\nby = "time"\n', ["[split]", "column", "missing"]),
    ("random with column", GOOD + TABLE_ITEM + '[split]\ncolumn = "at"\n', ["[split]", "column", "key"]),
    (
        "min_count",
        GOOD + TABLE_ITEM + "min_count = 0\n",
        ["[[table]] 'item'", "min_count: write one", "from 1 ", "not 0"],
    ),
    (
        "hash_rows",
        GOOD + TABLE_ITEM + "hash_rows = 2\n",
        ["[[table]] 'item'", "hash_rows: write one", "from 3 ", "not 2"],
    ),
    ("dim", GOOD + TABLE_ITEM + "dim = 6\n", ["[[table]] 'item'", "dim: write", "a multiple of 4, not 6"]),
    (
        "long name",
        GOOD.replace('name = "item"', f'name = "{"é" * 101}"', 1),
        ["[[feature]]", "is too long", "200 bytes"],
    ),
    ("hashed and counted", GOOD + TABLE_ITEM + "hash_rows = 9\nmin_count = 2\n", ["[[table]] 'item'", "min_count"]),
    ("count_from", GOOD + TABLE_ITEM + 'count_from = ["itm"]\n', ["count_from: 'itm'", "did you mean 'item'"]),
    ("count_from of others", GOOD + TABLE_ITEM + 'count_from = ["user"]\n', ["'user' is not a feature of this table"]),
    ("hashed count_from", GOOD + TABLE_ITEM + 'hash_rows = 9\ncount_from = "item"\n', ["count_from does nothing"]),
    ("split by label", GOOD + TABLE_ITEM + '[split]\nkey = ["user", "liked"]\n', ["key", "'liked'", "'like' predicts"]),
    ("time is label", GOOD + TABLE_ITEM + '[split]\nby = "time"\ncolumn = "liked"\n', ["column", "'like' predicts"]),
    ("absolute glob", GOOD + TABLE_ITEM + '[sources]\nraw = "/x/*.parquet"\n', ["[sources] 'raw'", "relative"]),
    ("optional", GOOD + TABLE_ITEM + '[sources]\nraw = {files = "*", optional = true}\n', ["'raw'", "columns"]),
    ("extends nothing", 'extends = "nope"\n', ["'nope' is neither a recipe nor a .toml file", "merrec"]),
    ("extends itself", 'extends = "mine.toml"\n', ["extends"]),
]


@pytest.mark.parametrize(("text", "names"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_mistakes_are_one_line_that_names_the_place(tmp_path: Path, text: str, names: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def test_unknown_recipe_lists_the_names() -> None:
    with pytest.raises(UserError, match="census, kuairand, kuairand_time, merrec"):
        load_recipe("nope")
