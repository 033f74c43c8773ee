"""Rows in JSON: what it says of several columns at once is what it says of each; answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recmtl.serving.columns import BadRequest, columns_from_json, from_json
from recmtl.serving.plain import answer

TYPES = [pa.int64(), pa.int32(), pa.uint64(), pa.float64(), pa.float32(), pa.string(), pa.bool_(), pa.date32()]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(allow_nan=False), st.text(max_size=3)
)
FITTING = {
    "integer": st.none() | st.integers(-(2**63), 2**63 - 1),
    "number": st.none() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False),
    "text": st.none() | st.text(max_size=3),
    "any": VALUES,
}
COLUMN = st.tuples(
    st.sampled_from(TYPES), st.sampled_from(list(FITTING)).flatmap(lambda k: st.lists(FITTING[k], max_size=4))
)


def outcome(make: Any) -> Any:
    try:
        return make()
    except BadRequest as error:
        return str(error)


@given(st.lists(COLUMN, min_size=1, max_size=5))
def test_columns_together_are_as_each_by_itself(columns: list[tuple[pa.DataType, list[Any]]]) -> None:
    named = [(pa.field(f"c{place}", kind), values) for place, (kind, values) in enumerate(columns)]
    each = [outcome(lambda f=field, v=values: from_json(v, f)) for field, values in named]
    together = outcome(lambda: columns_from_json(named))
    if isinstance(together, str):
        assert together in each
        return
    for (field, _), alone in zip(named, each, strict=True):
        found = together[field.name]
        # Nulls alone have no type, and whole numbers beside others are numbers: the encoder casts both.
        assert alone.equals(found) or alone.cast(found.type).equals(found)


def test_a_whole_number_that_no_float_holds_stays_as_it_is() -> None:
    fields = [pa.field(name, pa.float64()) for name in "ab"]
    found = columns_from_json([(fields[0], [0.5]), (fields[1], [2**60 + 1])])
    assert found["b"].to_pylist() == [2**60 + 1]


def test_a_mistake_names_its_column() -> None:
    fields = [pa.field(name, pa.int64()) for name in "ab"]
    with pytest.raises(BadRequest, match="column 'b'"):
        columns_from_json([(fields[0], [7]), (fields[1], [True, "x"])])


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_answer_is_json_of_the_same_numbers(rows: int) -> None:
    tasks = ("like", 'so "many" %s')
    scores = np.random.default_rng(0).random((rows, 3), np.float32)[:, :2]
    body = json.loads(answer("shop", "v1", tasks, scores))
    assert (body["model"], body["version"]) == ("shop", "v1")
    found = [[row[task] for task in tasks] for row in body["predictions"]]
    np.testing.assert_array_equal(np.array(found, np.float32).reshape(rows, 2), scores)
