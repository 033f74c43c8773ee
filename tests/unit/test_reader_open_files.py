"""However many files a split has, few are open at a time and no other footer is held."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from rows import TASKS, reader, row, rows_of, table_of, write

from recmtl.data.read import open_files
from recmtl.data.read.open_files import OpenFiles
from recmtl.data.read.parquet import ParquetSplit
from recmtl.data.read.reader import Reader
from recmtl.errors import UserError

FILES = 500


class Counter:
    """Counts the files that are open."""

    def __init__(self) -> None:
        self.now = self.most = self.all = 0
        self.lock = threading.Lock()

    def add(self, change: int) -> None:
        with self.lock:
            self.now += change
            self.most = max(self.most, self.now)
            self.all += change > 0


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the files that are open to read rows of them."""
    counter = Counter()

    class Counted(pq.ParquetFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            counter.add(1)

        def close(self, force: bool = False) -> None:
            counter.add(-1)
            super().close(force)

    monkeypatch.setattr(open_files.pq, "ParquetFile", Counted)
    return counter


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 rows in 500 files, of which the first ones are empty."""
    folder = tmp_path_factory.mktemp("many") / "data"
    write(folder, 3000, files=FILES, row_group=4)
    return folder


@pytest.mark.parametrize(("world_size", "threads"), [(1, 1), (1, 4), (3, 2)])
def test_no_more_files_are_open_than_there_are_streams(many, opened, world_size, threads):
    readers = [
        reader(many, rank=rank, world_size=world_size, streams=8, threads=threads, shuffle=True, batch_size=64)
        for rank in range(world_size)
    ]
    opened.all = opened.most = 0
    rows = []
    for read in readers:
        for epoch in range(2):
            with_pass = list(itertools.chain.from_iterable(rows_of(batch) for batch in read.batches(epoch)))
            assert opened.now == 0, "files are open after a pass"
        rows += with_pass
        assert opened.most <= 8 // world_size
    assert opened.all > FILES // 4
    assert sorted(rows) == [row(number) for number in range(3000)]


def test_a_pass_that_is_left_early_closes_its_files(many, opened):
    batches = reader(many, shuffle=True, threads=3).batches()
    next(batches)
    assert opened.now > 0
    batches.close()
    assert opened.now == 0


def test_an_error_closes_files_too(tmp_path, opened):
    write(tmp_path, 200, files=20)
    read = reader(tmp_path, threads=3)
    (tmp_path / "train" / "part-00013.parquet").unlink()
    with pytest.raises(UserError, match="part-00013"):
        list(read.batches())
    assert opened.now == 0


def test_threads_in_one_file_have_it_to_themselves(tmp_path, opened):
    write(tmp_path, 50, files=1)
    path = tmp_path / "train" / "part-00000.parquet"
    files = OpenFiles([path], [np.array([10] * 5)], 2)
    with files.file(0) as first, files.file(0) as second:
        assert first is not second
    with files.file(0) as again:
        assert again in (first, second)
    files.close()
    assert (opened.now, opened.most, opened.all) == (0, 2, 2)


def test_the_file_that_was_used_longest_ago_is_closed(tmp_path, opened):
    write(tmp_path, 90, files=3, row_group=1000)
    paths = sorted((tmp_path / "train").iterdir())
    files = OpenFiles(paths, [np.array([n]) for n in (10, 30, 50)], 2)
    for number in (0, 1, 0, 2, 0):
        with files.file(number):
            pass
    assert opened.all == 3  # 1 went for 2, 0 stayed
    files.close()


def test_footers_are_not_held(tmp_path):
    """150 files whose footers take 2 MB each: a tenth of what all of them would."""
    dataset = write(tmp_path, 300, files=1, row_group=1)
    first = tmp_path / "train" / "part-00000.parquet"
    for number in range(1, 150):
        os.link(first, first.with_name(f"part-{number:05d}.parquet"))
    dataset = replace(dataset, rows={"train": 150 * 300})
    process = psutil.Process()
    before = process.memory_info().rss
    one = pq.ParquetFile(first)
    assert one.metadata.serialized_size > 150_000  # far more in memory
    read = Reader(tmp_path, dataset, "train", TASKS, batch_size=64, streams=4, shuffle=True)
    assert len(list(read.batches(0, 0, 3))) == 3
    assert process.memory_info().rss - before < 150 * 2**20


def test_more_ranks_than_files_share_them_out(tmp_path):
    """Ranks without a file know the rows of all files too."""
    write(tmp_path, 60, files=2)
    both = threading.Barrier(5)
    found: list = [None] * 5

    def open_as(rank):
        def gather(check):
            found[rank] = check()
            both.wait(timeout=60)
            return found

        return reader(tmp_path, rank=rank, world_size=5, gather=gather)

    with ThreadPoolExecutor(5) as threads:
        ranks = list(threads.map(open_as, range(5)))
    assert [sorted(part) for part in found] == [[0], [1], [], [], []]
    rows = [r for rank in ranks for batch in rank.batches() for r in rows_of(batch)]
    assert sorted(rows) == [row(number) for number in range(60)]


def test_empty_files_and_empty_row_groups_hold_no_row(tmp_path):
    dataset = write(tmp_path, 40, files=1)
    folder = tmp_path / "train"
    (folder / "part-00000.parquet").rename(folder / "part-00001.parquet")
    for number in (0, 2):
        pq.write_table(table_of(0, 0), folder / f"part-{number:05d}.parquet")
    with pq.ParquetWriter(folder / "part-00003.parquet", table_of(0, 0).schema) as file:
        for start, stop in ((40, 45), (45, 45), (45, 50)):
            file.write_table(table_of(start, stop))
    replace(dataset, rows={"train": 50}).save(tmp_path)
    split = ParquetSplit(tmp_path, replace(dataset, rows={"train": 50}), "train", TASKS, evaluation=True)
    assert split.starts.tolist() == [0, 0, 10, 20, 30, 40, 40, 45, 45, 50]
    for shuffle in (False, True):
        rows = [r for batch in reader(tmp_path, shuffle=shuffle).batches() for r in rows_of(batch)]
        assert sorted(rows) == [row(number) for number in range(50)]
