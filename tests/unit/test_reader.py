"""The reader: every row once, in an order that depends on seed and batch size alone, and bad data found by name."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recmtl.data.batch import Batch
from recmtl.data.dataset import Dataset, Feature, Table, Task
from recmtl.data.parquet import ParquetSplit
from recmtl.data.reader import Prefetcher, Reader
from recmtl.errors import UserError

ROWS_IN_TABLE = 5000
TASKS = (Task("a", oracle=True), Task("b"))


class Row(NamedTuple):
    """All that a row holds, as a function of its number: a mixed-up column shows."""

    number: int
    other: int
    tags: tuple[int, ...]
    price: float
    a: int
    b: int
    oracle: float
    group: int


def row(number: int) -> Row:
    return Row(
        number,
        number * 7 % 4999,
        tuple((number + i) % 11 for i in range(number % 4)),
        number / 2,
        number % 2,
        number // 2 % 2,
        number / 2**13,
        10**12 + number // 3,
    )


def table_of(start: int, stop: int) -> pa.Table:
    rows = [row(number) for number in range(start, stop)]
    columns = {
        "row": (pa.int32(), [r.number for r in rows]),
        "other": (pa.int32(), [r.other for r in rows]),
        "tags": (pa.list_(pa.int32()), [r.tags for r in rows]),
        "price": (pa.float32(), [r.price for r in rows]),
        "label_a": (pa.int8(), [r.a for r in rows]),
        "label_b": (pa.int8(), [r.b for r in rows]),
        "oracle_a": (pa.float32(), [r.oracle for r in rows]),
        "group": (pa.int64(), [r.group for r in rows]),
    }
    return pa.table({name: pa.array(values, kind) for name, (kind, values) in columns.items()})


def write(folder: Path, rows: int, *, files: int = 2, row_group: int = 10) -> Dataset:
    """A prepared folder whose training split has `rows` rows in files of unequal size."""
    (folder / "train").mkdir(parents=True)
    bounds = [rows * i * i // files**2 for i in range(files + 1)]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        path = folder / "train" / f"part-{number:05d}.parquet"
        pq.write_table(table_of(start, stop), path, row_group_size=row_group)
    dataset = Dataset(
        name="rows",
        fingerprint="rows",
        rows={"train": rows},
        tables=(Table("row", ROWS_IN_TABLE), Table("tag", 11)),
        features=(
            Feature("row", table="row"),
            Feature("price", kind="numeric"),
            Feature("tags", kind="list", table="tag"),
            Feature("other", table="row"),
        ),
        tasks=TASKS,
        group=True,
    )
    dataset.save(folder)
    return dataset


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory):
    """Folder with so many rows, written once."""

    @cache
    def make(rows: int, files: int = 2, row_group: int = 10) -> Path:
        folder = tmp_path_factory.mktemp("rows") / "data"
        write(folder, rows, files=files, row_group=row_group)
        return folder

    return make


def reader(folder: Path, tasks: tuple[Task, ...] = TASKS, **options) -> Reader:
    options = {"batch_size": 16, "streams": 8, "evaluation": True, **options}
    return Reader(folder, Dataset.load(folder), "train", tasks, **options)


def rows_of(batch: Batch) -> list[Row]:
    """The real rows of a batch, read from all its columns."""
    numbers, others = batch.sparse["row"].values().tolist(), batch.sparse["other"].values().tolist()
    tags = [tuple(values.tolist()) for values in batch.sparse["tags"].to_dense()]
    assert batch.oracle is not None
    assert batch.group is not None
    return [
        Row(
            numbers[i],
            others[i],
            tags[i],
            batch.numeric[i, 0].item(),
            *batch.labels[i].int().tolist(),
            batch.oracle[i, 0].item(),
            batch.group[i].item(),
        )
        for i in range(len(batch.weights))
        if batch.weights[i] > 0
    ]


def epoch(folder: Path, world_size: int, number: int = 0, start: int = 0, **options) -> list[list[Row]]:
    """Rows of every global batch of an epoch, ranks one after the other; checks what a batch must hold."""
    ranks = [reader(folder, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    assert len({(r.steps, r.local_batch_size) for r in ranks}) == 1
    result = []
    for step, parts in enumerate(zip(*(r.batches(number, start) for r in ranks), strict=True), start):
        assert {len(batch.weights) for batch in parts} == {ranks[0].local_batch_size}
        assert sum(batch.weights.sum().item() for batch in parts) == pytest.approx(world_size, rel=1e-5)
        assert all((batch.weights[: batch.rows] > 0).all() and not batch.weights[batch.rows :].any() for batch in parts)
        rows = [r for batch in parts for r in rows_of(batch)]
        assert len(rows) == ranks[0].rows_in_step(step)
        result.append(rows)
    assert len(result) == ranks[0].steps - start
    return result


def assert_every_row_once(batches: list[list[Row]], rows: int) -> None:
    assert sorted(r for batch in batches for r in batch) == [row(number) for number in range(rows)]


SIZES = [  # rows, batch size, streams
    pytest.param(100, 20, 5, id="even"),
    pytest.param(7, 64, 64, id="fewer rows than a batch"),
    pytest.param(1, 8, 8, id="one row"),
    pytest.param(103, 17, 5, id="batch not divisible by streams"),
    pytest.param(97, 10, 64, id="more streams than a batch"),
    pytest.param(61, 6, 6, id="one row of a stream a batch"),
    pytest.param(64, 64, 7, id="one batch"),
    pytest.param(65, 64, 7, id="one row over"),
]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("rows", "batch_size", "streams"), SIZES)
def test_every_row_once_in_the_same_batches_on_any_number_of_ranks(folder_of, rows, batch_size, streams, shuffle):
    options = {"batch_size": batch_size, "streams": streams, "shuffle": shuffle, "seed": 3}
    alone = epoch(folder_of(rows), 1, **options)
    assert_every_row_once(alone, rows)
    assert len(alone) == -(-rows // batch_size)
    for world_size in (2, 3, 5):
        # Streams are dealt out in order, so the ranks' parts side by side are the batch of one rank.
        assert epoch(folder_of(rows), world_size, **options) == alone


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 90),
    batch_size=st.integers(1, 100),
    streams=st.integers(1, 70),
    world_size=st.integers(1, 5),
    files=st.integers(1, 3),
    row_group=st.sampled_from([3, 16, 1000]),
    shuffle=st.booleans(),
    number=st.integers(0, 3),
    data=st.data(),
)
def test_any_sizes(folder_of, rows, batch_size, streams, world_size, files, row_group, shuffle, number, data):
    world_size = min(world_size, batch_size, streams)
    folder = folder_of(rows, files, row_group)
    options = {"batch_size": batch_size, "streams": streams, "shuffle": shuffle, "number": number, "seed": 1}
    alone = epoch(folder, 1, **options)
    assert_every_row_once(alone, rows)
    start = data.draw(st.integers(0, len(alone)))
    assert epoch(folder, world_size, start=start, **options) == alone[start:]


def test_batches_are_near_equal_parts_of_all_streams(folder_of):
    """A batch in the middle of an epoch is full."""
    sizes = [len(rows) for rows in epoch(folder_of(97), 1, batch_size=10, streams=5)]
    assert sum(sizes) == 97
    assert sizes[:-1] == [10] * 9


@pytest.mark.parametrize("shuffle", [True, False])
def test_starting_at_a_batch_is_skipping_those_before(folder_of, shuffle):
    whole = epoch(folder_of(103), 1, number=2, shuffle=shuffle)
    for start in range(len(whole) + 1):
        assert epoch(folder_of(103), 3, number=2, start=start, shuffle=shuffle) == whole[start:]


def test_stop_ends_early(folder_of):
    read = reader(folder_of(103), shuffle=True)
    whole = [rows_of(batch) for batch in read.batches(1)]
    assert [rows_of(batch) for batch in read.batches(1, 2, 5)] == whole[2:5]
    assert [rows_of(batch) for batch in read.batches(1, 2, 5000)] == whole[2:]


def test_order_depends_on_epoch_and_seed(folder_of):
    folder = folder_of(103)
    first = epoch(folder, 1, number=0, shuffle=True, seed=1)
    assert epoch(folder, 1, number=0, shuffle=True, seed=1) == first
    for other in ({"number": 1, "seed": 1}, {"number": 0, "seed": 2}):
        batches = epoch(folder, 1, shuffle=True, **other)
        assert_every_row_once(batches, 103)
        assert batches != first
        assert [set(batch) for batch in batches] != [set(batch) for batch in first]


def test_rows_within_a_row_group_change_order_every_epoch(folder_of):
    read = reader(folder_of(60, 1, 1000), batch_size=60, streams=1, shuffle=True)
    orders = [[r.number for r in rows_of(next(read.batches(number)))] for number in (0, 1)]
    assert orders[0] != orders[1]
    assert list(range(60)) not in orders
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60))


def test_without_shuffling_streams_follow_the_files(folder_of):
    batches = epoch(folder_of(40), 1, batch_size=4, streams=2, shuffle=False)
    assert [[r.number for r in batch] for batch in batches[:2]] == [[0, 1, 20, 21], [2, 3, 22, 23]]


def test_padding_has_id_0_and_no_weight(folder_of):
    read = reader(folder_of(103), batch_size=16)
    last = list(read.batches())[-1]
    padding = last.weights == 0
    assert int(padding.sum()) == 16 - read.rows_in_step(read.steps - 1)
    assert last.sparse["row"].values()[padding].tolist() == [0] * int(padding.sum())
    assert last.sparse["tags"].lengths()[padding].tolist() == [0] * int(padding.sum())
    assert last.labels[padding].sum() == 0
    assert last.numeric[padding].sum() == 0


def test_tasks_are_read_in_the_order_asked_for(folder_of):
    batch = next(reader(folder_of(40), tasks=TASKS[::-1], batch_size=40).batches())
    numbers = batch.sparse["row"].values()
    assert (batch.labels[:, 1] == numbers % 2).all()
    assert (batch.labels[:, 0] == numbers // 2 % 2).all()


def test_training_batches_carry_no_oracle_and_no_group(folder_of):
    batch = next(reader(folder_of(40), evaluation=False).batches())
    assert batch.oracle is None
    assert batch.group is None


def test_a_task_without_oracle_has_nan(folder_of):
    batch = next(reader(folder_of(40)).batches())
    assert batch.oracle is not None
    assert batch.oracle[:, 1].isnan().all()
    assert not batch.oracle[:, 0].isnan().any()


def test_more_ranks_than_streams_is_an_error(folder_of):
    with pytest.raises(UserError, match=r"reader.streams and training.batch_size: at least the number of ranks \(9\)"):
        reader(folder_of(40), rank=0, world_size=9)


def replace(name: str, kind: pa.DataType, values: dict[int, object]):
    """Change a column's type, and the values of some rows."""

    def change(table: pa.Table) -> pa.Table:
        column = table.column(name).to_pylist()
        for at, value in values.items():
            column[at] = value
        return table.set_column(table.schema.get_field_index(name), name, pa.array(column, kind))

    return change


BAD_COLUMNS = [  # name, change, words of the message
    ("missing column", lambda t: t.drop_columns(["other"]), ["'other'"]),
    ("missing label", lambda t: t.drop_columns(["label_b"]), ["'label_b'"]),
    ("missing group", lambda t: t.drop_columns(["group"]), ["'group'"]),
    ("null id", replace("row", pa.int32(), {5: None}), ["'row'", "null"]),
    ("all ids null", replace("row", pa.int32(), dict.fromkeys(range(50))), ["'row'", "null"]),
    ("negative id", replace("other", pa.int32(), {5: -1}), ["'other'", "-1"]),
    ("id past the table", replace("row", pa.int32(), {17: ROWS_IN_TABLE}), ["'row'", str(ROWS_IN_TABLE)]),
    ("ids of another type", replace("row", pa.int64(), {}), ["'row'", "int64"]),
    ("label 2", replace("label_a", pa.int8(), {20: 2}), ["'label_a'", "2"]),
    ("null label", replace("label_a", pa.int8(), {20: None}), ["'label_a'", "null"]),
    ("NaN label", replace("label_a", pa.float32(), {20: float("nan")}), ["'label_a'", "float"]),
    ("list id past the table", replace("tags", pa.list_(pa.int32()), {3: [1, 11]}), ["'tags'", "11"]),
    ("negative list id", replace("tags", pa.list_(pa.int32()), {3: [-7]}), ["'tags'", "-7"]),
    ("null in a list", replace("tags", pa.list_(pa.int32()), {3: [1, None]}), ["'tags'", "null"]),
    ("null list", replace("tags", pa.list_(pa.int32()), {3: None}), ["'tags'", "null"]),
    ("list of another type", replace("tags", pa.list_(pa.int64()), {}), ["'tags'", "int64"]),
    ("no list", replace("tags", pa.int32(), dict.fromkeys(range(50), 1)), ["'tags'", "list"]),
    ("NaN number", replace("price", pa.float32(), {30: float("nan")}), ["'price'", "row 30", "nan"]),
    ("infinite number", replace("price", pa.float32(), {30: float("inf")}), ["'price'", "row 30", "inf"]),
    ("null number", replace("price", pa.float32(), {30: None}), ["'price'", "null"]),
]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(("change", "words"), [pytest.param(*bad[1:], id=bad[0]) for bad in BAD_COLUMNS])
def test_bad_values_are_found_with_file_and_column(tmp_path, change, words, statistics):
    dataset = write(tmp_path, 50, files=1)
    path = tmp_path / "train" / "part-00000.parquet"
    pq.write_table(change(table_of(0, 50)), path, row_group_size=10, write_statistics=statistics)
    with pytest.raises(UserError) as caught:
        list(Reader(tmp_path, dataset, "train", TASKS, batch_size=16, evaluation=True).batches())
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(bad[1], id=bad[0])
        for bad in BAD_COLUMNS
        if bad[0] not in ("NaN number", "infinite number", "null in a list", "null list")
    ],
)
def test_footers_tell_before_a_row_is_decoded(tmp_path, change):
    dataset = write(tmp_path, 50, files=1)
    pq.write_table(change(table_of(0, 50)), tmp_path / "train" / "part-00000.parquet")
    with pytest.raises(UserError, match="part-00000"):
        Reader(tmp_path, dataset, "train", TASKS, batch_size=16, evaluation=True)


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, keep):
    write(tmp_path, 50)
    path = tmp_path / "train" / "part-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"part-00001.parquet: not readable as Parquet"):
        reader(tmp_path)


def test_damage_within_a_file_is_named(tmp_path):
    write(tmp_path, 50)
    read = reader(tmp_path)
    path = tmp_path / "train" / "part-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * (len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(UserError, match=r"part-00001.parquet: not readable as Parquet"):
        list(read.batches())


def test_a_file_that_vanishes_is_named(tmp_path):
    write(tmp_path, 50)
    read = reader(tmp_path)
    (tmp_path / "train" / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00001.parquet: .*the file is missing"):
        list(read.batches())


def test_a_file_cut_short_in_mid_epoch_is_named(tmp_path):
    """While it is open: a file mapped into memory would end the process with a signal."""
    write(tmp_path, 5000, files=1, row_group=1000)
    read = reader(tmp_path, batch_size=100, streams=1)
    batches = read.batches()
    assert len(rows_of(next(batches))) == 100
    path = tmp_path / "train" / "part-00000.parquet"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"part-00000.parquet: not readable as Parquet .*cut short"):
        list(batches)


def test_an_open_file_that_vanishes_is_read_to_its_end(folder_of, tmp_path):
    write(tmp_path, 5000, files=1, row_group=1000)
    read = reader(tmp_path, batch_size=100, streams=1)
    batches = read.batches()
    rows = rows_of(next(batches))
    (tmp_path / "train" / "part-00000.parquet").unlink()
    rows += [row for batch in batches for row in rows_of(batch)]
    assert rows == [row(number) for number in range(5000)]


def test_a_file_replaced_in_mid_epoch_is_named(tmp_path):
    write(tmp_path, 50)
    read = reader(tmp_path)
    pq.write_table(table_of(12, 50), tmp_path / "train" / "part-00001.parquet", row_group_size=9)
    with pytest.raises(UserError, match=r"part-00001.parquet: changed since the run began"):
        list(read.batches())


def test_ranks_share_out_the_look_at_the_files(folder_of, monkeypatch):
    """Every file is looked at by one rank, and all know the rows of all files."""
    folder = folder_of(500, 7)
    alone = reader(folder)
    looked: list[str] = []
    whole = ParquetSplit._check_file
    monkeypatch.setattr(ParquetSplit, "_check_file", lambda self, path: looked.append(path.name) or whole(self, path))
    found: list = [None, None]
    both = threading.Barrier(2)

    def open_as(rank):
        def gather(check):
            found[rank] = check()
            both.wait(timeout=60)
            return found

        return reader(folder, rank=rank, world_size=2, gather=gather)

    with ThreadPoolExecutor(2) as threads:
        ranks = list(threads.map(open_as, range(2)))
    assert sorted(looked) == [f"part-{number:05d}.parquet" for number in range(7)]
    assert [sorted(part) for part in found] == [[0, 2, 4, 6], [1, 3, 5]]
    for rank in ranks:
        assert rank.data.starts.tolist() == alone.data.starts.tolist()


def test_missing_files_are_found_by_their_rows(tmp_path):
    write(tmp_path, 50)
    (tmp_path / "train" / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"train: 12 rows, but dataset.json says 50"):
        reader(tmp_path)
    (tmp_path / "train" / "part-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"train: no part-\*.parquet files"):
        reader(tmp_path)


def test_a_split_without_rows_has_no_batches(tmp_path):
    dataset = write(tmp_path, 50)
    read = Reader(tmp_path, dataset, "val", TASKS, batch_size=16)
    assert read.steps == 0
    assert list(read.batches()) == []


def readers_threads() -> int:
    return sum(thread.name == "recmtl-reader" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 4])
def test_prefetcher_gives_what_the_reader_gives(folder_of, depth):
    read = reader(folder_of(103), shuffle=True)
    with Prefetcher(read.batches(1), depth) as batches:
        ahead = [rows_of(batch) for batch in batches]
        with pytest.raises(StopIteration):  # and again, as the pipeline asks more than once
            next(batches)
    assert ahead == [rows_of(batch) for batch in read.batches(1)]
    assert readers_threads() == 0


def test_prefetcher_raises_the_readers_error(tmp_path):
    write(tmp_path, 50)
    read = reader(tmp_path, batch_size=4, streams=1)
    (tmp_path / "train" / "part-00001.parquet").unlink()
    with Prefetcher(read.batches(), 4) as batches:
        assert len(rows_of(next(batches))) == 4
        for _ in range(2):
            with pytest.raises(UserError, match="part-00001"):
                list(batches)
    assert readers_threads() == 0


def test_a_file_system_that_does_not_answer_is_no_hang():
    wait = threading.Event()

    def source():
        yield 0
        wait.wait()

    batches: Prefetcher = Prefetcher(source(), 2, seconds=0.1)  # type: ignore[arg-type]
    assert next(batches) == 0
    with pytest.raises(UserError, match=r"no batch within 0 s; see whether the file system"):
        next(batches)
    wait.set()
    batches.close()


def test_closing_early_ends_the_thread():
    """The source never ends and the queue is full."""
    batches: Prefetcher = Prefetcher(itertools.count(), 2)  # type: ignore[arg-type]
    assert next(batches) == 0
    assert readers_threads() == 1
    batches.close()
    assert readers_threads() == 0
