"""What `prepare` writes is what the encoder it saves gives for a row alone, and decodes to the raw value."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import read_all, run

from recmtl.encoding.decode import decode, read_values
from recmtl.encoding.encoder import Encoder
from recmtl.schema import FIRST, MISSING, UNSEEN

COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "whole": (pa.int64(), st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3)),
    "unsigned": (pa.uint64(), st.integers(0, 2**64 - 1) | st.integers(0, 3)),
    "double": (pa.float64(), st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf, -math.inf, 2.0**63])),
    "flag": (pa.bool_(), st.booleans()),
    "day": (pa.date32(), st.dates(dt.date(1, 1, 1)) | st.just(dt.date(1970, 1, 1))),
    "moment": (pa.timestamp("us"), st.datetimes() | st.just(dt.datetime(2024, 1, 1))),
    "text": (pa.string(), st.text(max_size=3) | st.sampled_from(["", "é", "e\u0301", "☃\0"])),
    "bytes": (pa.binary(), st.binary(max_size=3)),
    "price": (pa.decimal128(9, 2), st.sampled_from([decimal.Decimal("1.50"), decimal.Decimal("-0.01")])),
    "words": (pa.list_(pa.string()), st.lists(st.none() | st.sampled_from("abc"), max_size=3)),
}
RECIPE = (
    'sql = "select * from raw"\n[[feature]]\nname = "place"\nkind = "numeric"\n[[task]]\nname = "y"\nlabel = "y"\n'
    + "".join(f'[[feature]]\nname = "{name}"\n' for name in COLUMNS if name != "words")
    + '[[feature]]\nname = "words"\nkind = "list"\n'
    + "".join(f'[[table]]\nname = "{name}"\nmin_count = 2\n' for name in COLUMNS)
    + "[split]\nval = 0.2\ntest = 0.2\n"
)
Row = tuple[Any, ...]


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(*(st.none() | values for _, values in COLUMNS.values())), min_size=20, max_size=40))
def test_row_by_row(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    columns = {
        name: pa.array(values, kind)
        for (name, (kind, _)), values in zip(COLUMNS.items(), zip(*rows, strict=True), strict=True)
    }
    places = pa.array(np.arange(len(rows)), pa.float64())
    dataset = run(folder, pa.table({**columns, "place": places, "y": pa.array(np.arange(len(rows)) % 2)}), RECIPE)
    encoder = Encoder.load(folder / "out" / "encoder")
    assert [table.rows for table in encoder.tables] == [table.rows for table in dataset.tables]

    prepared = read_all(folder).to_pylist()
    assert len(prepared) == len(rows)
    for row in prepared:
        place = int(row["place"])
        alone = {name: column[place : place + 1] for name, column in {**columns, "place": places}.items()}
        encoded = encoder.encode(alone)
        assert {name: column[0].as_py() for name, column in encoded.items()} == {name: row[name] for name in encoded}
        for name in COLUMNS:
            ids = row[name] if name == "words" else [row[name]]
            values = columns[name][place].as_py()
            check(folder / "out" / "vocab", name, ids, values if name == "words" else [values])


def check(vocabularies: Path, table: str, ids: list[int], values: list[Any] | None) -> None:
    """Every id is that of a missing value, of an unseen one, or decodes to the value."""
    given_ = values or []
    if table == "words":
        given_ = [value for value in given_ if value is not None]
    assert len(ids) == len(given_)
    decoded = decode(read_values(vocabularies, table), np.array(ids, np.int64)).to_pylist()
    for id, value, back in zip(ids, given_, decoded, strict=True):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            assert id == MISSING
        elif id != UNSEEN:
            assert id >= FIRST
            assert back == (str(value) if isinstance(value, decimal.Decimal) else value)
