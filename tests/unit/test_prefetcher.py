"""Batches that a thread decodes ahead: the same ones, the reader's errors, and no thread left."""

from __future__ import annotations

import itertools
import threading

import pytest
from rows import reader, rows_of, write

from recmtl.data.read.prefetcher import Prefetcher
from recmtl.data.read.reader import STREAM_ROWS
from recmtl.errors import UserError


def readers_threads() -> int:
    return sum(thread.name == "recmtl-reader" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 4])
def test_prefetcher_gives_what_the_reader_gives(tmp_path, depth):
    write(tmp_path, 103)
    read = reader(tmp_path, shuffle=True)
    with Prefetcher(read.batches(1), depth) as batches:
        ahead = [rows_of(batch) for batch in batches]
        with pytest.raises(StopIteration):  # and again, as the pipeline asks more than once
            next(batches)
    assert ahead == [rows_of(batch) for batch in read.batches(1)]
    assert readers_threads() == 0


def test_prefetcher_raises_the_readers_error(tmp_path):
    write(tmp_path, 4 * STREAM_ROWS)  # a fourth of the rows lie in the first file
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
