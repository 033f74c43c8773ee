"""The tasks of the engine of Spark, one after the other in this process, write what DuckDB alone writes."""

from __future__ import annotations

import pickle
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spark_raw import RECIPE, write_raw

from recmtl.data.prepare.checks import questions
from recmtl.data.prepare.engine import Query
from recmtl.data.prepare.examples import STORED
from recmtl.data.prepare.extension import Extend, last_moment
from recmtl.data.prepare.facts import Facts
from recmtl.data.prepare.partitions import partition_key
from recmtl.data.prepare.prepare import prepare
from recmtl.data.prepare.spark import encoding, ranks, tasks
from recmtl.data.prepare.spark.planning import make_plan
from recmtl.data.prepare.spark.transfer import from_bytes
from recmtl.data.prepare.stored import show
from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError
from recmtl.synthetic.synthesize import synthesize

Stage = Callable[..., Iterator[Any]]


def copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


class Shuffled:
    """Partitions of elements, as Spark has them: what a task takes and gives is pickled, and comes in any order."""

    def __init__(self, parts: list[list[Any]]) -> None:
        self.parts = parts

    def through(self, stage: Stage, *, numbered: bool = False) -> Shuffled:
        parts = []
        for number, part in enumerate(self.parts):
            part = copied(part)
            arguments = (number, iter(part)) if numbered else (iter(part),)
            parts.append(copied(list(copied(stage)(*arguments))))
        return Shuffled(parts)

    def dealt(self, partitions: int) -> Shuffled:
        dealt: dict[int, list[Any]] = defaultdict(list)
        for part in reversed(self.parts):
            for key, value in part:
                dealt[key].append((key, value))
        assert set(dealt) <= set(range(partitions))
        return Shuffled([dealt[number] for number in range(partitions)])

    def __iter__(self) -> Iterator[Any]:
        return (element for part in self.parts for element in part)


class Rows:
    """The jobs of `recmtl.data.prepare.spark.engine`, without Spark."""

    def __init__(self, query: Query, folder: Path, cores: int) -> None:
        self.query, self.folder = query, folder
        plan, pieces, sql_type = make_plan(query, "1GB", 10**9, cores)
        self.plan = plan
        read = Shuffled([[piece] for piece in pieces]).through(partial(tasks.read_pieces, plan, sql_type=sql_type))
        queried = read.dealt(plan.partitions).through(partial(tasks.run_query, plan))
        self.stored = queried.dealt(plan.ranges).through(partial(tasks.store, plan), numbered=True)
        self.summaries = list(filter(tasks.is_summary, self.stored))
        self.sums = {summary.number: summary.hashes for summary in self.summaries}
        self.rows = sum(summary.rows for summary in self.summaries)
        self.unlabelled = sum(summary.unlabelled for summary in self.summaries)

    def facts(self) -> Facts:
        total = Facts()
        for summary in self.summaries:
            total.merge(summary.facts)
        assert total.counts.keys() == questions(self.query.recipe, self.plan.selected).conditions.keys()
        return total

    def ranked(self, wanted: Iterable[int]) -> list[Any]:
        wanted, db, types = list(wanted), self.query.db, self.plan.selected
        told = list(self.stored.through(partial(ranks.tell_points, self.plan, sums=self.sums)))
        places = ranks.brackets(db, told, wanted, types)
        between = partial(ranks.tell_between, self.plan, sums=self.sums, wanted=places)
        found = list(self.stored.through(between))
        of_ranks = [[(before, rows) for of, before, rows in found if of == number] for number in range(len(wanted))]
        return [ranks.place_between(db, of_ranks[n], rank, types) for n, rank in enumerate(wanted)]

    def last_moment(self) -> str:
        last = [from_bytes(summary.last) for summary in self.summaries if summary.last is not None]
        if last:
            types = {"#split value": self.plan.selected["#split value"]}
            show(self.query.db, pa.concat_tables(last), STORED, types)
        return last_moment(self.query.db, self.query.recipe)

    def assign_splits(self, rule: str) -> tuple[Any, Any]:
        self.rule, parts = rule, 3
        survey = partial(encoding.survey, self.plan, sums=self.sums, rule=rule, parts=parts)
        told = self.stored.through(survey).dealt(1 + parts).through(partial(encoding.merge, self.plan), numbered=True)
        [statistics] = (element for element in told if isinstance(element, encoding.Statistics))
        self.told = [element for element in told if not isinstance(element, encoding.Statistics)]
        self.hashes = statistics.hashes
        return statistics.tasks, statistics.features

    def counts(self, spec: Any) -> Iterator[pa.RecordBatch]:
        for table, data in self.told:
            if table == spec.name:
                yield from from_bytes(data).to_batches()

    def write(self, encoder: Any, dataset: Any, folder: Path) -> tuple[Any, Any]:
        shards = encoding.ShardMap(self.hashes, 1000)
        writing = encoding.Writing(self.rule, dataset, shards, folder, self.folder / "attempts")
        for path in (self.folder / "attempts", *(folder / split for split in ("train", "val", "test"))):
            path.mkdir(exist_ok=True)
        encode = partial(encoding.encode, self.plan, sums=self.sums, writing=writing)
        dealt = self.stored.through(encode).dealt(len(shards.shards) + 1)
        # Twice, as where Spark starts a second attempt.
        dealt.through(partial(encoding.write_shard, self.plan, writing=writing), numbered=True)
        [shares] = dealt.through(partial(encoding.write_shard, self.plan, writing=writing), numbered=True)
        assert list((self.folder / "attempts").iterdir()) == []
        sent: dict[str, bytes] = defaultdict(bytes)
        through = encoding.Writing(self.rule, dataset, shards, folder, None)
        for element in dealt.through(partial(encoding.write_shard, self.plan, writing=through), numbered=True):
            if isinstance(element, tuple):
                sent[element[0]] += element[1]
        assert sent == {name: (folder / name).read_bytes() for name in sent}
        assert len(sent) == len(shards.shards)
        content: dict[str, dict[str, str]] = defaultdict(dict)
        columns = [(split, n) for split, rows in dataset.rows.items() if rows for n in encoding.schema(dataset).names]
        for found in encoding.digests(columns, writing):
            for split, of_columns in found.items():
                content[split].update(of_columns)
        return shares, dict(content)


class Engine:
    def __init__(self, folder: Path, cores: int) -> None:
        self.folder, self.cores = folder, cores

    def run(self, query: Query, progress: object) -> Rows:
        return Rows(query, self.folder, self.cores)


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Have `prepare` run the tasks."""

    def use(out: Path, cores: int) -> None:
        work = out.with_name(f".{out.name}.tmp")
        files = SimpleNamespace(getRootDirectory=lambda: str(work / "data" / "encoder"))
        contexts = SimpleNamespace(get=lambda: None)
        monkeypatch.setitem(sys.modules, "pyspark", SimpleNamespace(SparkFiles=files, TaskContext=contexts))
        monkeypatch.setattr("recmtl.data.prepare.prepare.LocalEngine", lambda folder, memory: Engine(work, cores))

    monkeypatch.setattr("recmtl.data.prepare.shards.SHARD_ROWS", 1000)
    return use


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("cores", [1, 3])
def test_a_recipe_with_lists(tmp_path: Path, spark: Callable[..., None], cores: int) -> None:
    write_raw(tmp_path / "raw", 6000)
    (tmp_path / "mine.toml").write_text(RECIPE)
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    prepare(recipe, tmp_path / "raw", tmp_path / "one")
    spark(tmp_path / "other", cores)
    prepare(recipe, tmp_path / "raw", tmp_path / "other")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert len(list((tmp_path / "one" / "train").iterdir())) > 1


def test_a_part_of_the_rows_and_data_that_are_extended(tmp_path: Path, spark: Callable[..., None]) -> None:
    write_raw(tmp_path / "raw", 3000)
    (tmp_path / "mine.toml").write_text(RECIPE)
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    begun = prepare(recipe, tmp_path / "raw", tmp_path / "begun", until="2024-01-12")
    extend = Extend(tmp_path / "begun", lookback="2 days", val=0.2)
    options: dict[str, dict[str, Any]] = {"limit": {"limit": 1300}, "grown": {"extend": extend}}
    for name, chosen in options.items():
        prepare(recipe, tmp_path / "raw", tmp_path / name, **chosen)
    for name, chosen in options.items():
        spark(tmp_path / f"{name}-spark", 2)
        prepare(recipe, tmp_path / "raw", tmp_path / f"{name}-spark", **chosen)
        assert contents(tmp_path / name) == contents(tmp_path / f"{name}-spark")
    assert begun.until < "2024-01-12"


def test_rows_that_are_alike_in_several_partitions(tmp_path: Path, spark: Callable[..., None]) -> None:
    """Their numbers, which decide splits and order, are given among all of them."""
    rng = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    for number in range(3):
        table = pa.table({"user": rng.integers(0, 50, 900), "x": rng.integers(1, 4, 900), "y": rng.integers(0, 2, 900)})
        pq.write_table(table, tmp_path / "raw" / f"{number}.parquet")
    (tmp_path / "mine.toml").write_text(
        'sql = "select x, y from raw"\n[sources]\nraw = { files = "*.parquet", partition_by = "user" }\n'
        '[[feature]]\nname = "x"\n[[task]]\nname = "y"\nlabel = "y"\n'
    )
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    prepare(recipe, tmp_path / "raw", tmp_path / "one")
    spark(tmp_path / "other", 2)
    prepare(recipe, tmp_path / "raw", tmp_path / "other")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


@pytest.mark.parametrize("name", ["merrec", "merrec_sequence"])
def test_merrec(tmp_path: Path, spark: Callable[..., None], name: str) -> None:
    recipe = load_recipe(name)
    # Without, every task would read all raw files, up to 1 GiB.
    assert {source.partition_by for source in recipe.sources} == {"user_id"}
    synthesize(tmp_path / "raw", 4000)
    prepare(recipe, tmp_path / "raw", tmp_path / "one")
    spark(tmp_path / "other", 2)
    prepare(recipe, tmp_path / "raw", tmp_path / "other")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_mistakes_of_tasks(tmp_path: Path, spark: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach the driver marked, where they become what they were."""
    from recmtl.data.prepare.spark.errors import driver_error

    write_raw(tmp_path / "raw", 400)
    (tmp_path / "mine.toml").write_text(RECIPE)
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    spark(tmp_path / "out", 1)

    def mistake() -> str:
        with pytest.raises(UserError) as raised:
            prepare(recipe, tmp_path / "raw", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(driver_error(f"x.UserError: {raised.value}\n"))

    with monkeypatch.context() as patch:
        patch.setattr("recmtl.data.prepare.spark.plan.duckdb", SimpleNamespace(__version__="0.1"))
        patch.setattr("recmtl.data.prepare.spark.planning.versions", lambda: {**tasks_versions(), "duckdb": "0.2"})
        assert "has duckdb 0.1, and the driver 0.2; give all machines the same packages" in mistake()
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "is_file", lambda path: False)
        assert "0.parquet: not seen by the executor on" in mistake()
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "partition_key", lambda *args: partition_key(*args) + " + error('no')")
        assert "mine.toml: sql: " in mistake()
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "Rows", OtherRows)
        assert "mine.toml: sql yields other rows when it runs again" in mistake()


class OtherRows(Rows):
    """Whose query yields other rows when it runs again."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sums = {number: hashes + 1 for number, hashes in self.sums.items()}


def tasks_versions() -> dict[str, str]:
    from recmtl.data.prepare.spark.plan import versions

    return versions()


def test_only_what_the_query_needs_travels(tmp_path: Path, spark: Callable[..., None]) -> None:
    write_raw(tmp_path / "raw", 400)
    (tmp_path / "mine.toml").write_text(RECIPE)
    spark(tmp_path / "out", 1)
    seen = []
    original = make_plan

    def plan(*args: Any) -> Any:
        seen.append(original(*args)[0])
        raise UserError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "make_plan", plan)
        with pytest.raises(UserError, match="enough"):
            prepare(load_recipe(str(tmp_path / "mine.toml")), tmp_path / "raw", tmp_path / "out")
    [raw] = (source for source in seen[0].sources if source.name == "raw")
    assert raw.carried is not None
    assert set(raw.types) - set(raw.carried.names) == {"unused", "filename", "file_row_number"} - set(raw.carried.names)
    assert "unused" not in raw.carried.names
