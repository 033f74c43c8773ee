"""`prepare`: one line for everything that can be wrong, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import RECIPE, events, only, run

from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError

COLUMNS = "columns are user, item, previous, tags, price, clicked, at, number, where, file"
BAD_RECIPES = [
    # what is wrong, text to replace, replacement, what the message names
    ("missing column", 'name = "price"', 'name = "prize"', ["'prize'", f"did you mean 'price'? Its {COLUMNS}"]),
    ("missing label", 'label = "clicked"', 'label = "bought"', ["[[task]] 'click'", "no column 'bought'"]),
    ("missing group", 'group = "user"', 'group = "person"', ["group", f"no column 'person'; its {COLUMNS}"]),
    ("list as group", 'group = "user"', 'group = "tags"', ["group: column 'tags' is VARCHAR[]", "a single value"]),
    ("missing key", "[split]", '[split]\nkey = ["person"]', ["[split]", "key", "no column 'person'"]),
    ("sql syntax", "from raw", "from from raw", ["sql", "syntax error"]),
    ("sql column", "from raw", "from raw where\nbogus = 1", ["sql, line 3", "bogus"]),
    ("sql table", "from raw", "from logs", ["sql, line 2", "logs"]),
    ("sql two", "from raw", "from raw; select 1", ["sql", "one select"]),
    ("sql kind", "select *, filename as file\nfrom raw", "create table t (i int)", ["sql", "one select"]),
    ("sql fails on data", "from raw", 'from raw where cast("user" as int) > 0', ["sql", "Conversion Error"]),
    ("sql empty", "from raw", "from raw where price < -1", ["sql yields no rows"]),
    ("text as number", 'name = "price"', 'name = "price"\ncolumn = "user"', ["'price'", "VARCHAR", "needs a number"]),
    ("list as id", 'name = "item"', 'name = "item"\ncolumn = "tags"', ["'item'", "kind = 'list'"]),
    ("id as list", 'name = "tags"', 'name = "tags"\ncolumn = "user"', ["'tags'", "separator"]),
    (
        "texts of unlike types in one table",
        "select *, filename as file",
        "select * replace (item::decimal(9,1) as item, previous::decimal(9,2) as previous), filename as file",
        ["item is DECIMAL(9,1), previous is DECIMAL(9,2)", "cast in sql"],
    ),
    (
        "name of an own column",
        'group = "user"',
        'group = "#HASH"',
        ["group: '#HASH' is a name that recmtl uses itself"],
    ),
    ("types in one table", 'name = "previous"', 'name = "previous"\ncolumn = "user"', ["'item'", "differ in type"]),
    ("text as label", 'label = "clicked"', 'label = "file"', ["[[task]] 'click'", "'file' is VARCHAR"]),
    ("null time", "[split]", '[split]\nby = "time"\ncolumn = "item"', ["[split]", "'item' is null"]),
    ("no known split", "[split]\nval = 0.2\ntest = 0.2", '[split]\nby = "column"\ncolumn = "user"', ["'u", "train"]),
    (
        "no training rows",
        "[split]\nval = 0.2\ntest = 0.2",
        '[split]\nby = "column"\ncolumn = "where"',
        ["no row is left"],
    ),
    ("no file", "[[feature]]", '[sources]\nraw = "logs/*.parquet"\n[[feature]]', ["logs/*.parquet", "no file matches"]),
]


def assert_refused(folder: Path, names: list[str], table: pa.Table, text: str = RECIPE, **options: Any) -> None:
    """Preparing must end in one line with all `names` in it, and leave nothing behind."""
    with pytest.raises(UserError) as caught:
        run(folder, table, text, **options)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message
    assert sorted(path.name for path in folder.iterdir()) == ["mine.toml", "raw"]


@pytest.mark.parametrize(("old", "new", "names"), [row[1:] for row in BAD_RECIPES], ids=[row[0] for row in BAD_RECIPES])
def test_recipe_that_does_not_fit(tmp_path: Path, old: str, new: str, names: list[str]) -> None:
    assert old in RECIPE
    table = events(60).append_column("where", pa.array(["test"] * 60))
    assert_refused(tmp_path, names, table, RECIPE.replace(old, new, 1))


NESTED = [
    ("tags", "[tags] as deep", ["'tags'", "VARCHAR[][], a list of lists; flatten it in sql, as in flatten(deep)"]),
    ("item", "[tags] as deep", ["'item'", "flatten it in sql, as in flatten(deep) and set kind = 'list'"]),
    ("tags", "[1, 2]::int[2] as deep", ["'tags'", "INTEGER[2]; cast it to a list in sql: deep::INTEGER[]"]),
    ("item", "[1, 2]::int[2] as deep", ["'item'", "INTEGER[2]; set kind = 'list'"]),
]


@pytest.mark.parametrize(("feature", "column", "names"), NESTED)
def test_lists_that_are_not_simple(tmp_path: Path, feature: str, column: str, names: list[str]) -> None:
    text = RECIPE.replace("filename as file", column).replace(
        f'name = "{feature}"', f'name = "{feature}"\ncolumn = "deep"', 1
    )
    assert_refused(tmp_path, names, events(60), text)


@pytest.mark.parametrize(("bad", "shown"), [(2.0, "2.0"), (float("nan"), "nan"), (0.5, "0.5")])
def test_label_that_is_not_0_or_1(tmp_path: Path, bad: float | None, shown: str) -> None:
    table, text = only("categorical", pa.array(["a"] * 20))
    labels = pa.array([0.0] * 12 + [bad] + [1.0] * 7, pa.float64())
    table = table.set_column(1, "y", labels)
    assert_refused(tmp_path, ["'y'", f"is {shown} at 0.parquet, row 12"], table, text)


def test_computed_label(tmp_path: Path) -> None:
    text = RECIPE.replace("filename as file", "clicked + 1 as twice").replace('label = "clicked"', 'label = "twice"')
    assert_refused(tmp_path, ["'twice' is 2", "must be 0, 1 or null"], events(50), text)


def test_oracle_with_gaps(tmp_path: Path) -> None:
    text = RECIPE.replace('label = "clicked"', 'label = "clicked"\noracle = "p"')
    table = events(50).append_column("p", pa.array([0.5] * 49 + [None]))
    assert_refused(tmp_path, ["oracle", "'p'", "every row"], table, text)


def test_truncated_file(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    pq.write_table(events(5000, seed=3), tmp_path / "raw" / "cut.parquet")
    whole = (tmp_path / "raw" / "cut.parquet").read_bytes()
    (tmp_path / "raw" / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    assert_refused(tmp_path, ["cut.parquet", "not readable as Parquet"], events(50))


def test_damaged_pages(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "bits.parquet"
    pq.write_table(events(5000, seed=3), path, compression="snappy")
    whole = bytearray(path.read_bytes())
    whole[4 : len(whole) // 2] = b"\xff" * (len(whole) // 2 - 4)
    path.write_bytes(whole)
    assert_refused(tmp_path, ["bits.parquet", "not readable as Parquet"], events(50))


def test_empty_folder_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    recipe = load_recipe("census")
    with pytest.raises(UserError, match=r"no file matches train\.parquet or test\.parquet"):
        prepare(recipe, tmp_path / "raw", tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        prepare(recipe, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        run(tmp_path, events(50))
    assert (tmp_path / "out" / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"memory_limit": "lots"}, "'lots'"),
        ({"memory_limit": "4"}, "'4'"),
        ({"threads": 0}, "--threads: 0"),
        ({"threads": 9999}, "the most is 1024"),
    ],
)
def test_bad_flags(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    assert_refused(tmp_path, [name], events(50), **options)


def test_memory_limit_too_small(tmp_path: Path) -> None:
    for limit in ("1MB", "1KB"):
        assert_refused(tmp_path, [f"--memory-limit {limit} is too small"], events(50), memory_limit=limit)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_nothing_in_the_way(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of a query. What SIGKILL leaves is removed at the next start."""
    slow = RECIPE.replace("from raw", "from raw, range(3000000000) where hash(number, range) = 1")
    (tmp_path / "mine.toml").write_text(slow)
    (tmp_path / "raw").mkdir()
    pq.write_table(events(50), tmp_path / "raw" / "0.parquet")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "recmtl", "prepare", "mine.toml", "raw", "out", "--threads", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.tmp/data")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        with pytest.raises(UserError, match=f"out: in use by process {process.pid} on"):
            prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path / "raw", tmp_path / "out")
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert process.returncode == expected[number]
    assert said == ("interrupted\n" if number == signal.SIGINT else "")
    if number == signal.SIGKILL:
        assert (tmp_path / ".out.tmp" / "data").is_dir()
        (tmp_path / "mine.toml").write_text(RECIPE)
        prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path / "raw", tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "raw"]
