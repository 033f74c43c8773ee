"""The record of a day: what is written is what is read, days come in their order, and a damaged file is one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from recmtl.errors import UserError
from recmtl.rolling.record import (
    Cost,
    DayRecord,
    Gain,
    Gate,
    TableCounts,
    Today,
    Yesterday,
    load_records,
    numbers,
    record_path,
)

RECORD = DayRecord(
    day="2023-05-02",
    since="2023-05-02 00:00:00",
    until="2023-05-03 00:00:00",
    rows={"train": 5, "val": 0, "test": 1},
    tables={"item": TableCounts(rows=3, new=1, retired=0)},
    start_from="2023-05-01",
    yesterday=Yesterday("2023-05-01", 6, {"like": {"auc": 0.7, "auc_se": None, "rows": 6.0}}),
    today=Today(1, {"like": {"auc": 0.75}}, {"like": {"auc": 0.7}}, {"like": Gain(0.05, 0.01)}),
    gate=Gate(False, ("like.auc is 0.75, not >= 0.8",)),
    cost={"prepare": Cost(1.5, 2.0)},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    first = replace(RECORD, day="2023-05-01", since="2023-05-01 00:00:00", yesterday=None, today=None, start_from=None)
    for record in (RECORD, first):
        record.save(tmp_path)
    assert load_records(tmp_path) == [first, RECORD]
    assert load_records(tmp_path / "none") == []


def test_days_that_are_numbers_come_by_their_size(tmp_path: Path) -> None:
    for day in ("1000", "200", "-5", "0.5"):
        replace(RECORD, day=day, since=day).save(tmp_path)
    assert [record.day for record in load_records(tmp_path)] == ["-5", "0.5", "200", "1000"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"format": 0}, "written by another version"),
        ({"day": 3}, "day: write text, not 3"),
        ({"since": "someday"}, "damaged"),
        ({"extra": 1}, "unknown key 'extra'"),
        ("[]", "damaged"),
        ("{", "damaged"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, change: dict | str, line: str) -> None:
    RECORD.save(tmp_path)
    path = record_path(tmp_path, RECORD.day)
    text = json.dumps(json.loads(path.read_text()) | change) if isinstance(change, dict) else change
    path.write_text(text)
    with pytest.raises(UserError, match=line) as refused:
        load_records(tmp_path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_of_results_numbers_alone_are_kept() -> None:
    values = {"auc": 0.5, "gauc": None, "rows": 3, "auc_folds": [0.1], "ne": float("nan")}
    assert numbers({"like": values}) == {"like": {"auc": 0.5, "gauc": None, "rows": 3.0, "ne": None}}
