"""What a model reads of some rows: columns side by side, those that several rows share among them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from recmtl.features.lists import PREPARED
from recmtl.inference.inputs import Collator, Inputs, Shared
from recmtl.schema import Feature

FEATURES = (
    Feature("user", table="user"),
    Feature("item", table="item"),
    Feature("words", kind="list", table="word"),
    Feature("tags", kind="list", table="word"),
    Feature("age", kind="numeric"),
    Feature("price", kind="numeric"),
)
OF_TWO_USERS = {
    "user": pa.array([7, 8], pa.int32()),
    "words": pa.array([[2, 3], []], PREPARED),
    "age": pa.array([0.5, -1.0], pa.float32()),
}
OF_FIVE_ROWS = {
    "item": pa.array([2, 3, 4, 5, 6], pa.int32()),
    "tags": pa.array([[1], [2, 2], [], [3], [4, 5, 6]], PREPARED),
    "price": pa.array([1.0, 2.0, 3.0, 4.0, 5.0], pa.float32()),
}


def assert_equal(found: Inputs, wanted: Inputs) -> None:
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.numeric, wanted.numeric)
    for one, other in zip(found.lists, wanted.lists, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_what_rows_share_is_as_if_each_had_it() -> None:
    collator, places = Collator(FEATURES), np.array([0, 0, 1, 1, 1])
    found = collator.collate(OF_TWO_USERS | OF_FIVE_ROWS, Shared(set(OF_TWO_USERS), places))
    whole = {name: column.take(pa.array(places)) for name, column in OF_TWO_USERS.items()}
    assert_equal(found, collator.collate(whole | OF_FIVE_ROWS))
    assert found.ids.tolist() == [[7, 7, 8, 8, 8], [2, 3, 4, 5, 6]]
    assert found.lists[0][1].tolist() == [2, 2, 0, 0, 0]


def test_rows_may_share_everything_or_be_none() -> None:
    collator = Collator(FEATURES)
    columns = {name: column[:1] for name, column in (OF_TWO_USERS | OF_FIVE_ROWS).items()}
    for rows in (0, 1, 3):
        found = collator.collate(columns, Shared(set(columns), np.zeros(rows, np.int64)))
        whole = {name: column.take(pa.array(np.zeros(rows, np.int64))) for name, column in columns.items()}
        assert_equal(found, collator.collate(whole))
        assert found.rows == rows


@pytest.mark.parametrize(
    ("longest", "wanted"), [(0, 2048), (64, 2048), (128, 1024), (256, 512), (512, 128), (4096, 2), (100_000, 1)]
)
def test_rows_at_once_fall_with_the_items_of_the_longest_sequence_and_then_with_their_pairs(longest, wanted):
    lengths = np.array([0, longest, 1], np.int32)
    columns = [(np.zeros(lengths.sum(), np.int32), lengths)] * 2
    inputs = Inputs(np.zeros((0, 3), np.int32), np.zeros((3, 0), np.float32), columns, sequences=(1,))
    assert inputs.at_once(2048) == wanted
    assert replace(inputs, sequences=()).at_once(2048) == 2048
