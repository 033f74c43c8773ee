"""Windows of a log: where they begin, what they are called, and which lengths they may have."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recmtl.errors import UserError
from recmtl.rolling.calendar import Calendar
from recmtl.rolling.record import order_of


def calendar(every: str | None = None, sql_type: str = "TIMESTAMP") -> Calendar:
    return Calendar.parse("at", sql_type, every)


@pytest.mark.parametrize(
    ("every", "sql_type", "moment", "start", "name"),
    [
        (None, "TIMESTAMP", "2023-05-02 23:59:59.999999", "2023-05-02 00:00:00", "2023-05-02"),
        ("1 day", "TIMESTAMP WITH TIME ZONE", "2023-05-02 01:00+02:00", "2023-05-01 00:00:00", "2023-05-01"),
        ("1 day", "DATE", "2023-05-02", "2023-05-02", "2023-05-02"),
        ("7 days", "DATE", "2023-05-07", "2023-05-01", "2023-05-01"),  # a Monday
        ("1 week", "TIMESTAMP", "2023-05-08", "2023-05-08 00:00:00", "2023-05-08"),
        ("6 hours", "TIMESTAMP", "2023-05-02 07:30", "2023-05-02 06:00:00", "2023-05-02T06:00"),
        ("30 seconds", "TIMESTAMP", "2023-05-02 07:30:59", "2023-05-02 07:30:30", "2023-05-02T07:30:30"),
        ("86400", "BIGINT", "-1", "-86400", "-86400"),
        ("0.1", "DOUBLE", "0.35", "0.3", "0.3"),
        ("250", "DECIMAL(10,2)", "1000.25", "1000", "1000"),
    ],
)
def test_where_a_window_begins_and_what_it_is_called(every, sql_type, moment, start, name):
    windows = calendar(every, sql_type)
    found = windows.start(windows.moment(moment, "--start"))
    assert windows.text(found) == start
    assert windows.name(found) == name
    # What was written of a window leads back to it.
    assert windows.moment(name, "--redo-from") == windows.moment(start, "--since") == found


@given(st.integers(-(10**15), 10**15), st.sampled_from(["1 day", "6 hours", "90 minutes", "1 week"]))
def test_every_moment_lies_in_its_window_and_names_are_in_order(microseconds, every):
    windows = calendar(every)
    start = windows.start(Fraction(microseconds))
    assert start <= microseconds < start + windows.every
    assert order_of(windows.name(start)) < order_of(windows.name(start + windows.every))


@pytest.mark.parametrize(
    ("every", "sql_type", "line"),
    [
        ("a day", "TIMESTAMP", "--every: 'a day' is not a length of time such as '1 day' or '6 hours'"),
        ("1 month", "TIMESTAMP", "is not a length of time"),  # months differ in length
        ("0 days", "TIMESTAMP", "--every: '0 days' is no length of a window"),
        ("6 hours", "DATE", "is no number of days, and column 'at' holds dates"),
        ("1 day", "BIGINT", "--every: '1 day' is no number, and column 'at' is BIGINT"),
        ("0.5", "BIGINT", "'0.5' is no whole number"),
        ("1/0", "DOUBLE", "'1/0' is no number"),
        (None, "BIGINT", "name the length of a window as a number"),
    ],
)
def test_a_length_that_is_none_is_one_line(every, sql_type, line):
    with pytest.raises(UserError) as refused:
        calendar(every, sql_type)
    assert line in str(refused.value)


def test_a_moment_that_is_none_is_one_line():
    with pytest.raises(UserError, match="--start: 'noon' is no moment of column 'at', which is TIMESTAMP; write 2023"):
        calendar().moment("noon", "--start")
    with pytest.raises(UserError, match="write a number"):
        calendar("1", "BIGINT").moment("2023-05-01", "--start")
