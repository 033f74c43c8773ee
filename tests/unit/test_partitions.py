"""Parts of a source, buckets of the shuffle: nothing of the output changes, and mistakes are one line."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recmtl.data.prepare import partitions
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError
from recmtl.synthetic.synthesize import synthesize

RECIPE = """
sql = '''
select *, lag(item) over (partition by "user" order by moment, filename, number) as previous
from events
'''
group = "user"
[sources]
raw = "*.parquet"
[sources.events]
sql = '''
select *, file_row_number as number, cast(item as hugeint) * 10000000000 as huge, cast(item as decimal(30, 3)) as exact,
    cast(md5(words[1]) as uuid) as unique_id, cast(clicked as tinyint) as label, to_days(clicked::int) as span
from raw
'''
partition_by = "user"
[[table]]
name = "item"
[[feature]]
name = "user"
[[feature]]
name = "item"
[[feature]]
name = "previous"
table = "item"
[[feature]]
name = "huge"
[[feature]]
name = "unique_id"
[[feature]]
name = "words"
kind = "list"
[[feature]]
name = "exact"
kind = "numeric"
transform = "standardize"
[[task]]
name = "click"
label = "label"
[split]
by = "time"
column = "moment"
"""

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "é", "", None]),
        st.none() | st.integers(-(2**28), 2**28),
        st.none() | st.lists(st.sampled_from(["x", "y", ""]), max_size=3),
        st.datetimes(datetime.datetime(2020, 1, 1), datetime.datetime(2030, 1, 1)),
        st.booleans(),
    ),
    min_size=20,
    max_size=60,
)


def write(folder: Path, rows: list[tuple[Any, ...]], text: str = RECIPE) -> None:
    """A raw folder of two files, and a recipe."""
    kinds = (pa.string(), pa.int64(), pa.list_(pa.string()), pa.timestamp("us"), pa.bool_())
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    table = pa.table(columns, names=["user", "item", "words", "moment", "clicked"])
    (folder / "raw").mkdir()
    pq.write_table(table.slice(0, 12), folder / "raw" / "0.parquet")
    pq.write_table(table.slice(12), folder / "raw" / "1.parquet")
    (folder / "mine.toml").write_text(text)


def contents(recipe: str, raw: Path, out: Path) -> dict[str, bytes]:
    """Every file that preparing writes."""
    prepare(load_recipe(recipe), raw, out)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, part_rows=st.integers(8, 30))
def test_the_output_is_that_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, rows: list[Any], part_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    write(folder, rows)
    whole = contents(str(folder / "mine.toml"), folder / "raw", folder / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(partitions, "PARTITION_ROWS", part_rows)
        cut = contents(str(folder / "mine.toml"), folder / "raw", folder / "cut")
    assert cut == whole


def test_merrec_in_parts_is_merrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize(tmp_path / "raw", 20_000)
    whole = contents("merrec", tmp_path / "raw", tmp_path / "whole")
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 3000)
    for few in ("partitions.CHUNK_ROWS", "examples.FETCH_ROWS", "factorized.BATCH_ROWS"):
        monkeypatch.setattr(f"recmtl.data.prepare.{few}", 2048)
    monkeypatch.setattr("recmtl.data.prepare.factorized.BATCH_BYTES", 2**16)
    seen: list[int] = []
    iter_partitions = partitions.iter_partitions
    monkeypatch.setattr(
        "recmtl.data.prepare.partitions.iter_partitions",
        lambda *args: (seen.append(part) or part for part in iter_partitions(*args)),
    )
    assert contents("merrec", tmp_path / "raw", tmp_path / "cut") == whole
    assert seen == list(range(7))


@pytest.mark.parametrize("key", ["user", "USER"])
def test_several_sources_are_cut_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Equal values are in one partition, whatever the types of the columns."""
    numbers = np.arange(400) % 37
    for name, table in {
        "left": pa.table({"user": pa.array(numbers, pa.int32()), "x": numbers % 5, "y": np.arange(400) % 2}),
        "right": pa.table({key: pa.array(np.arange(37), pa.uint8()), "z": np.arange(37) % 3}),
    }.items():
        (tmp_path / "raw" / name).mkdir(parents=True)
        pq.write_table(table, tmp_path / "raw" / name / "0.parquet")
    (tmp_path / "mine.toml").write_text(
        'sql = "select *, count(*) over (partition by l.user) as seen from l join r on l.user = r.user"\n[sources]\n'
        'l = { files = "left/*.parquet", partition_by = "user" }\n'
        f'r = {{ files = "right/*.parquet", partition_by = "{key}" }}\n'
        '[[feature]]\nname = "x"\n[[feature]]\nname = "z"\n[[feature]]\nname = "seen"\n'
        '[[task]]\nname = "y"\nlabel = "y"\n'
    )
    whole = contents(str(tmp_path / "mine.toml"), tmp_path / "raw", tmp_path / "whole")
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 50)
    assert contents(str(tmp_path / "mine.toml"), tmp_path / "raw", tmp_path / "cut") == whole


def test_sources_whose_partitions_do_not_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 10)
    for name, values in {"left": pa.array(range(40)), "right": pa.array(list(map(str, range(40))))}.items():
        (tmp_path / "raw" / name).mkdir(parents=True)
        pq.write_table(pa.table({"user": values, "y": [0, 1] * 20}), tmp_path / "raw" / name / "0.parquet")
    (tmp_path / "mine.toml").write_text(
        'sql = "select l.user as x, l.y as y from l join r on l.user::varchar = r.user"\n[sources]\n'
        'l = { files = "left/*.parquet", partition_by = "user" }\n'
        'r = { files = "right/*.parquet", partition_by = "user" }\n'
        '[[feature]]\nname = "x"\n[[task]]\nname = "y"\nlabel = "y"\n'
    )
    with pytest.raises(UserError, match=r"\[sources\]: partition_by is BIGINT in 'l' and VARCHAR in 'r'; cast it"):
        prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path / "raw", tmp_path / "out")


def test_no_row_left_to_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 10)
    row = ("a", 1, ["x"], datetime.datetime(2024, 1, 1), True)
    write(tmp_path, [row] * 20, RECIPE.replace("as span\nfrom raw", "as span\nfrom raw where item = 2"))
    with pytest.raises(UserError, match=r"mine\.toml: sql yields no rows from these files"):
        prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path / "raw", tmp_path / "out")


def test_parts_follow_rows_and_memory() -> None:
    assert partitions.number_of_partitions(0, 10**9) == 1
    assert partitions.number_of_partitions(partitions.PARTITION_ROWS, 10**10) == 1
    assert partitions.number_of_partitions(partitions.PARTITION_ROWS + 1, 10**10) == 2
    assert partitions.number_of_partitions(1_000_000, 100_000 * partitions.ROW_BYTES) == 10
    assert partitions.number_of_partitions(10**12, 10**9) == partitions.MOST_PARTITIONS


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'partition_by = "user"',
            'partition_by = "usr"',
            r"'events': partition_by: no column 'usr'; did you mean 'user'\? "
            r"Its columns are user, item, words, moment, "
            "clicked, number, huge, exact, unique_id, label, span$",
        ),
        (
            'raw = "*.parquet"',
            'raw = "*.parquet"\nmore = {sql = "select * from raw", partition_by = "user"}',
            r"partition_by is for one source with sql, not for more, events",
        ),
        ('partition_by = "user"', 'files = "*.parquet"', r"'events': give files .* or sql, one of them"),
        ('partition_by = "user"', 'optional = true\ncolumns = {a = "INT"}', r"'events': optional is for files"),
        ("as span\nfrom raw", "as span\nfrom rwa", r"\[sources\] 'events': .*rwa"),
    ],
)
def test_mistakes_name_the_source(tmp_path: Path, old: str, new: str, message: str) -> None:
    row = ("a", 1, ["x"], datetime.datetime(2024, 1, 1), True)
    write(tmp_path, [row] * 20, RECIPE.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as raised:
        prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path / "raw", tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_damaged_file_is_named_while_cutting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "PARTITION_ROWS", 100)
    synthesize(tmp_path / "raw", 5000)
    path = tmp_path / "raw" / "20230501" / "000000000001.parquet"
    whole = bytearray(path.read_bytes())
    whole[4 : len(whole) // 2] = b"\xff" * (len(whole) // 2 - 4)
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"000000000001\.parquet: not readable as Parquet"):
        prepare(load_recipe("merrec"), tmp_path / "raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()
