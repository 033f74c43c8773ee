"""The reader: every row once, in an order that depends on seed and batch size alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import TASKS, Row, reader, row, rows_of, write

from recmtl.errors import UserError


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory):
    """Folder with so many rows, written once."""

    @cache
    def make(rows: int, files: int = 2, row_group: int = 10) -> Path:
        folder = tmp_path_factory.mktemp("rows") / "data"
        write(folder, rows, files=files, row_group=row_group)
        return folder

    return make


def epoch(folder: Path, world_size: int, number: int = 0, start: int = 0, **options) -> list[list[Row]]:
    """Rows of every global batch of an epoch, ranks one after the other; checks what a batch must hold."""
    ranks = [reader(folder, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    assert len({(r.steps, r.local_batch_size) for r in ranks}) == 1
    result = []
    for step, parts in enumerate(zip(*(r.batches(number, start) for r in ranks), strict=True), start):
        assert {len(batch.weights) for batch in parts} == {ranks[0].local_batch_size}
        assert sum(batch.weights.sum().item() for batch in parts) == pytest.approx(world_size, rel=1e-5)
        for sparse in (batch.sparse for batch in parts):
            counts = sparse.lengths().view(len(sparse.keys()), -1).sum(1).tolist()
            assert sparse.length_per_key_or_none() == counts
            assert len(sparse.values()) == sum(counts)
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
    threads=st.integers(1, 3),
    data=st.data(),
)
def test_any_sizes(folder_of, rows, batch_size, streams, world_size, files, row_group, shuffle, number, threads, data):
    world_size = min(world_size, batch_size, streams)
    folder = folder_of(rows, files, row_group)
    options = {"batch_size": batch_size, "streams": streams, "shuffle": shuffle, "number": number, "seed": 1}
    alone = epoch(folder, 1, **options)
    assert_every_row_once(alone, rows)
    start = data.draw(st.integers(0, len(alone)))
    assert epoch(folder, world_size, start=start, threads=threads, **options) == alone[start:]


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
