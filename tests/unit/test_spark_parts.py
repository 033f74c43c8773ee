"""What the engine of Spark is made of, as far as it runs without Spark."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recmtl.data.prepare.duck import column_types, connect, quote
from recmtl.data.prepare.examples import STORED
from recmtl.data.prepare.facts import Facts, Questions, find_facts
from recmtl.data.prepare.prepare import prepare
from recmtl.data.prepare.sources import create_views
from recmtl.data.prepare.spark import pieces
from recmtl.data.prepare.spark.errors import driver_error, marked
from recmtl.data.prepare.spark.plan import SourcePlan
from recmtl.data.prepare.spark.ranks import brackets, place_between, points, rows_between
from recmtl.data.prepare.spark.shards import BUCKETS, ShardMap, count_hashes
from recmtl.data.prepare.spark.transfer import deal, from_bytes, pack, to_bytes, unpack
from recmtl.data.prepare.splits import ranked_rows
from recmtl.data.prepare.stored import Stored
from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError
from recmtl.schema import SPLITS

HASHES = st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=1, max_size=200)


@settings(max_examples=50, deadline=None)
@given(hashes=HASHES, shard_rows=st.integers(1, 30), together=st.booleans(), data=st.data())
def test_every_shard_has_its_rows(hashes: list[int], shard_rows: int, together: bool, data: st.DataObject) -> None:
    """Also where many rows are in one bucket, which several shards share."""
    keys = np.array(hashes, np.uint64) >> np.uint64(20 if together else 0)
    keys = np.unique(keys)
    np.random.default_rng(0).shuffle(keys)
    splits = np.array(data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=len(keys), max_size=len(keys))), np.uint8)
    shards = ShardMap(count_hashes(splits, keys), shard_rows)
    came: dict[int, list[int]] = {}
    for some in np.array_split(np.arange(len(keys)), 3):
        rows = pa.record_batch({"key": pa.array(keys[some])})
        for shard, dealt in shards.deal(rows, splits[some], keys[some]):
            came.setdefault(shard, []).extend(from_bytes(dealt)["key"].to_pylist())
    for number, name in enumerate(SPLITS):
        wanted = np.sort(keys[splits == number])
        of_split = [(place, shard) for place, shard in enumerate(shards.shards) if shard.split == name]
        found = [sorted(came[place])[shard.skip : shard.skip + shard.rows] for place, shard in of_split]
        assert [key for keys_of in found for key in keys_of] == wanted.tolist()
        assert [shard.rows for _, shard in of_split[:-1]] == [shard_rows] * (len(of_split) - 1)
        assert [shard.number for _, shard in of_split] == list(range(len(of_split)))


def test_shards_take_few_rows_that_are_not_theirs() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, np.uint64)
    splits = rng.integers(0, 3, len(hashes)).astype(np.uint8)
    shards = ShardMap(count_hashes(splits, hashes), 1000)
    rows = pa.record_batch({"key": pa.array(hashes)})
    moved = sum(from_bytes(dealt).num_rows for _, dealt in shards.deal(rows, splits, hashes))
    assert len(hashes) <= moved <= len(hashes) + len(shards.shards) * 5 * max(1, len(hashes) // BUCKETS)


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.integers(0, 20), min_size=2, max_size=120),
    ranges=st.integers(1, 5),
    step=st.integers(1, 9),
    share=st.floats(0, 1),
)
def test_a_rank_is_found_among_ranges(values: list[int], ranges: int, step: int, share: float) -> None:
    """The row is that of all rows sorted in one place, also where many are of one moment."""
    hashes = np.random.default_rng(len(values)).permutation(len(values)).astype(np.uint64)
    table = pa.table({"#split value": pa.array(values, pa.int32()), "#hash": pa.array(hashes)})
    types = {"#split value": "INTEGER", "#hash": "UBIGINT"}
    ranks = [min(int(share * len(values)), len(values) - 1), 0, len(values) - 1]
    of_range = [table.take(pa.array(np.flatnonzero(hashes % ranges == number))) for number in range(ranges)]
    db, name = duckdb.connect(), STORED.strip('"')
    told, between = [], []
    for some in of_range:
        db.register(name, some)
        told.append(points(db, step))
    places = brackets(db, told, ranks, types)
    for some in of_range:
        db.register(name, some)
        between.append([rows_between(db, place) for place in places])
    db.register(name, table)
    wanted = ranked_rows(db, ranks)
    db.unregister(name)
    assert [
        place_between(db, [of_ranks[number] for of_ranks in between], rank, types) for number, rank in enumerate(ranks)
    ] == wanted
    db.close()
    assert sum(from_bytes(rows).num_rows for _, rows in between[0]) <= len(values) * 3


def test_only_rows_near_a_rank_are_gathered() -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {"#split value": rng.integers(0, 10**9, 50_000), "#hash": rng.integers(0, 2**64, 50_000, np.uint64)}
    )
    with duckdb.connect() as db:
        db.register(STORED.strip('"'), table)
        told = [points(db, 50)]
        [place] = brackets(db, told, [40_000], {"#split value": "BIGINT", "#hash": "UBIGINT"})
        before, rows = rows_between(db, place)
    assert 0 < from_bytes(rows).num_rows <= 200
    assert 40_000 - 200 < before <= 40_000


def test_rows_are_dealt_by_key_in_their_order() -> None:
    rows = pa.record_batch({"text": ["a", "bb", None, "", "c"], "list": [[1], [], None, [2, 3], [4]]})
    dealt = {key: from_bytes(data).to_pylist() for key, data in deal(rows, np.array([7, 0, 7, 3, 0]))}
    assert dealt == {0: rows.take([1, 4]).to_pylist(), 3: rows.take([3]).to_pylist(), 7: rows.take([0, 2]).to_pylist()}
    assert list(deal(rows.slice(0, 0), np.empty(0, np.int64))) == []


def test_files_arrive_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recmtl.data.prepare.spark.transfer.CHUNK_BYTES", 10)
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    written = {"a b.arrow": bytes(range(25)), "c": b"", "d": b"x" * 10}
    for name, data in written.items():
        (tmp_path / "one" / name).write_bytes(data)
    unpack(pack(tmp_path / "one"), tmp_path / "other")
    assert {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()} == written


def test_pieces_are_whole_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_ROWS", 10)
    assert list(pieces.row_ranges([4, 4, 4, 20, 1, 1])) == [(0, 8), (8, 12), (12, 32), (32, 34)]
    assert list(pieces.row_ranges([3])) == [(0, 3)]
    assert list(pieces.row_ranges([0, 0])) == []


RECIPE = """
sql = "select *, filename as file from raw"
[sources]
raw = { files = "*.parquet", partition_by = "user" }
[[feature]]
name = "item"
[[task]]
name = "click"
label = "clicked"
"""


def write(folder: Path, text: str = RECIPE, rows: int = 100) -> None:
    (folder / "raw").mkdir(exist_ok=True)
    table = pa.table({"user": np.arange(rows) % 7, "item": np.arange(rows), "clicked": np.arange(rows) % 2})
    for number in range(4):
        part = table.slice(number * rows // 4, rows // 4)
        if number == 3:  # of another schema
            part = part.set_column(1, "item", part["item"].cast(pa.int16()))
        pq.write_table(part, folder / "raw" / f"{number}.parquet", row_group_size=rows // 10)
    (folder / "mine.toml").write_text(text)


@pytest.mark.parametrize("piece_rows", [10, 30, 60, 1000])
def test_pieces_hold_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_rows: int) -> None:
    monkeypatch.setattr(pieces, "PIECE_ROWS", piece_rows)
    write(tmp_path)
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    files = {"raw": sorted((tmp_path / "raw").iterdir())}
    db = connect("1GB", 1, tmp_path / "spill")
    views = create_views(db, recipe, files, tmp_path / "raw").files
    cut = list(pieces.cut(recipe.sources[0], files["raw"], views["raw"]))
    assert len(cut) == {10: 12, 30: 4, 60: 2, 1000: 1}[piece_rows]
    whole = sorted(db.execute("select * from raw").fetchall())
    assert sorted(row for piece in cut for row in db.execute(piece.sql).fetchall()) == whole
    described = db.execute(f"describe {cut[-1].sql}").fetchall()
    assert {name: kind for name, kind, *_ in described} == column_types(db, "raw")


def test_a_source_that_is_neither_partitioned_nor_small_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "WHOLE_BYTES", 1000)
    write(tmp_path, RECIPE.replace(', partition_by = "user"', ""))
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    files = {"raw": sorted((tmp_path / "raw").iterdir())}
    message = r"mine\.toml: \[sources\] 'raw': has no partition_by, and at .* is too large for every task of Spark"
    with pytest.raises(UserError, match=message):
        pieces.partitioned_sources(recipe, files, {"raw": {"user": "BIGINT"}})


def test_an_optional_source_may_lack_the_column(tmp_path: Path) -> None:
    sources = 'raw = { files = "*.parquet", optional = true, columns = {a = "INT"}, partition_by = "other" }'
    write(tmp_path, RECIPE.replace('raw = { files = "*.parquet", partition_by = "user" }', sources))
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    files = {"raw": sorted((tmp_path / "raw").iterdir())}
    assert pieces.partitioned_sources(recipe, files, {"raw": {"user": "BIGINT"}}) == []
    assert prepare(recipe, tmp_path / "raw", tmp_path / "out").rows["train"] > 0


def test_a_partition_shows_what_is_carried_and_null_for_the_rest(tmp_path: Path) -> None:
    carried = pa.schema([("user", pa.int64()), ("item", pa.string())])
    with pa.ipc.new_file(tmp_path / "rows.arrow", carried) as file:
        file.write_batch(pa.record_batch([[1, 2], ["a", None]], schema=carried))
    types = {"name": "VARCHAR", "user": "BIGINT", "item": "VARCHAR", "price": "DOUBLE"}
    db = duckdb.connect()
    SourcePlan("raw", (), "", types, carried).create_view(db, Stored(tmp_path / "rows.arrow"))
    assert column_types(db, quote("raw")) == types
    assert db.execute("select * from raw order by 2").fetchall() == [(None, 1, "a", None), (None, 2, None, None)]


def test_facts_of_parts_are_those_of_all() -> None:
    table = pa.table({"x": [1, None, 3, 4, 9], "part": ["train", "test", None, "train", "val"]})
    questions = Questions({"x > 2": "x", "x is null": None, "x > 100": "x"}, "part")

    def of(rows: pa.Table) -> Facts:
        with duckdb.connect() as db:
            db.register(STORED.strip('"'), rows)
            return find_facts(db, questions)

    whole, merged = of(table), Facts()
    for start in range(0, 5, 2):
        merged.merge(of(table.slice(start, 2)))
    assert (merged.counts, merged.groups) == (whole.counts, whole.groups)
    assert whole.counts == {"x > 2": 3, "x is null": 1, "x > 100": 0}
    assert merged.values.keys() == {"x > 2"}
    assert merged.values["x > 2"] in (3, 4, 9)


def test_what_spark_says_of_a_task_becomes_one_error() -> None:
    """Texts as Spark 4 writes them."""
    stack = "\n\tat org.apache.spark.api.python.BasePythonRunner.x(PythonRunner.scala:1)\n"
    begin = "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n: "
    python = (
        "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n  File 'x', line 3, in f\n"
    )
    mistake = UserError('mine.toml: sql: it\'s "wrong"')
    error = driver_error(f"{begin}{python}recmtl.errors.UserError: {marked(mistake)}\n SQLSTATE: 38000{stack}")
    assert isinstance(error, UserError)
    assert str(error) == str(mistake)
    error = driver_error(f"{begin}{python}ValueError: hey\nthere\n SQLSTATE: 38000{stack}")
    assert isinstance(error, RuntimeError)
    assert str(error).endswith("in f\nValueError: hey\nthere\n")
    lost = (
        "Job aborted due to stage failure: Task 0 in stage 1.0 failed 4 times: ExecutorLostFailure (executor 1 exited)"
    )
    error = driver_error(f"{begin}org.apache.spark.SparkException: {lost}{stack}")
    assert isinstance(error, UserError)
    assert str(error) == f"--engine spark: {lost}"


@pytest.mark.parametrize("said", ["", "\n: java.lang.IllegalStateException: SparkContext has been shutdown\n\tat x"])
@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "26/11/30 11:32:08 WARN Utils: hostname\n"
            "26/11/30 11:33:08 ERROR StandaloneSchedulerBackend: Application has been killed.\n"
            "26/11/30 11:33:09 ERROR X: more\n",
            "Application has been killed.",
        ),
        ("bin/java: No such file or directory\n", "bin/java: No such file or directory"),
        ("", ""),
    ],
)
def test_why_spark_ended_is_in_its_log(said: str, log: str, reason: str) -> None:
    known = reason or ("SparkContext has been shutdown" if said else "its Java process has ended")
    assert str(driver_error(said, log)) == f"--engine spark: {known}"


def test_bytes_are_those_of_the_rows_alone() -> None:
    """What is sent does not grow with the rows that a slice was cut from."""
    rows = pa.record_batch({"text": ["x" * 1000] * 1000, "list": [[1] * 100] * 1000})
    assert len(to_bytes(rows.slice(5, 1))) < 5000
