"""The order of rows, written apart: runs go on where they stopped only as long as it stays what it is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from rows import reader, rows_of, write

ROW_GROUP = 10


def stream_order(groups: list[tuple[int, int]], start: int, stop: int, seed: tuple[int, ...] | None) -> list[int]:
    """Numbers of the rows of the stream start … stop − 1, in the order in which they are visited.

    Its row groups, cut to the stream, are permuted, and within each of them the rows are.
    """
    chunks = [(i, max(start, low), min(stop, high)) for i, (low, high) in enumerate(groups)]
    chunks = [chunk for chunk in chunks if chunk[1] < chunk[2]]
    if seed is None:
        return [row for _, low, high in chunks for row in range(low, high)]
    order = np.random.default_rng(seed).permutation(len(chunks))
    result: list[int] = []
    for number, low, high in (chunks[place] for place in order):
        result += (low + np.random.default_rng((*seed, number)).permutation(high - low)).tolist()
    return result


def batches_of(rows: int, files: int, batch_size: int, streams: int, seed: tuple[int, int] | None) -> list[list[int]]:
    """Numbers of the rows of every batch: an equal part of every stream, stream after stream."""
    bounds = [rows * i * i // files**2 for i in range(files + 1)]  # as `rows.write` cuts files
    groups = [
        (low, min(low + ROW_GROUP, stop))
        for start, stop in itertools.pairwise(bounds)
        for low in range(start, stop, ROW_GROUP)
    ]
    shares = [batch_size // streams + (number < batch_size % streams) for number in range(streams)]
    ends = [end * rows // batch_size for end in itertools.accumulate(shares, initial=0)]
    orders = [
        stream_order(groups, start, stop, None if seed is None else (*seed, number))
        for number, (start, stop) in enumerate(itertools.pairwise(ends))
    ]
    steps = max(-(-len(order) // share) for order, share in zip(orders, shares, strict=True))
    return [
        [row for order, share in zip(orders, shares, strict=True) for row in order[step * share : (step + 1) * share]]
        for step in range(steps)
    ]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("batch_size", "streams"), [(16, 8), (17, 5), (6, 1), (200, 64)])
def test_the_order_of_rows_is_that_of_the_formula(tmp_path, batch_size, streams, shuffle):
    rows, files, epoch = 403, 5, 2
    write(tmp_path, rows, files=files, row_group=ROW_GROUP)
    read = reader(tmp_path, batch_size=batch_size, streams=streams, shuffle=shuffle, seed=7)
    expected = batches_of(rows, files, batch_size, streams, (7, epoch) if shuffle else None)
    assert [[row.number for row in rows_of(batch)] for batch in read.batches(epoch)] == expected
    for start in (1, read.steps // 2):
        resumed = [[row.number for row in rows_of(batch)] for batch in read.batches(epoch, start)]
        assert resumed == expected[start:]


def test_threads_change_nothing(tmp_path):
    write(tmp_path, 3000, files=30, row_group=ROW_GROUP)
    alone = [rows_of(batch) for batch in reader(tmp_path, shuffle=True).batches()]
    assert [rows_of(batch) for batch in reader(tmp_path, shuffle=True, threads=4).batches()] == alone
