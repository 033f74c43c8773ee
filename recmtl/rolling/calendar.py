"""Windows of a log, one after the other, by a column of dates, timestamps or numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

from recmtl.data.prepare.moments import is_time
from recmtl.errors import UserError
from recmtl.schema import INTEGERS

EPOCH = datetime(1970, 1, 1)
MICROSECONDS = {"second": 10**6, "minute": 60 * 10**6, "hour": 3600 * 10**6, "day": 86400 * 10**6}
MICROSECONDS["week"] = 7 * MICROSECONDS["day"]
MONDAY = 4 * MICROSECONDS["day"]
"""Where windows of time begin to count: 5 January 1970, so that those of a week begin on Mondays. UTC."""
OF_TIME = "a length of time such as '1 day' or '6 hours'"


@dataclass(frozen=True)
class Calendar:
    """The windows of a column.

    Moments are microseconds since 1970 in UTC, or numbers as the column has them.
    """

    column: str
    sql_type: str
    every: Fraction
    """Length of a window."""

    @staticmethod
    def parse(column: str, sql_type: str, every: str | None) -> Calendar:
        """Of ``--every``; None: a day.

        Raises:
            UserError: it is no length of a window of this column.
        """
        if every is None and not is_time(sql_type):
            raise UserError(f"--every: column {column!r} is {sql_type}; name the length of a window as a number of it")
        length = parse_length(every or "1 day", column, sql_type, "--every")
        if length <= 0:
            raise UserError(f"--every: {every!r} is no length of a window; write one above 0")
        if sql_type == "DATE" and length % MICROSECONDS["day"]:
            raise UserError(f"--every: {every!r} is no number of days, and column {column!r} holds dates")
        if sql_type in INTEGERS and length.denominator > 1:
            raise UserError(f"--every: {every!r} is no whole number, and column {column!r} is {sql_type}")
        return Calendar(column, sql_type, length)

    def moment(self, text: str, option: str) -> Fraction:
        """A moment that a user or a record wrote, or the name of a window.

        Raises:
            UserError: it is none.
        """
        try:
            return _moment(text) if is_time(self.sql_type) else Fraction(text)
        except (ValueError, ZeroDivisionError):
            wanted = "2023-05-01 or '2023-05-01 06:00'" if is_time(self.sql_type) else "a number"
            raise UserError(
                f"{option}: {text!r} is no moment of column {self.column!r}, which is {self.sql_type}; write {wanted}"
            ) from None

    def length(self, text: str, option: str) -> Fraction:
        """A length of time that a user gave by an option.

        Raises:
            UserError: it is none.
        """
        return parse_length(text, self.column, self.sql_type, option)

    def start(self, moment: Fraction) -> Fraction:
        """Start of the window that a moment is in."""
        origin = MONDAY if is_time(self.sql_type) else 0
        return origin + (moment - origin) // self.every * self.every

    def text(self, moment: Fraction) -> str:
        """A moment as the column's type takes it."""
        if not is_time(self.sql_type):
            return _number(moment)
        found = _datetime(moment)
        return f"{found:%Y-%m-%d}" if self.sql_type == "DATE" else found.isoformat(" ")

    def name(self, start: Fraction) -> str:
        """What a window is called: 2023-05-01, 2023-05-01T06:00, or its number."""
        if not is_time(self.sql_type):
            return _number(start)
        found = _datetime(start)
        if found == found.replace(hour=0, minute=0, second=0, microsecond=0):
            return f"{found:%Y-%m-%d}"
        return found.isoformat(timespec="auto" if found.second or found.microsecond else "minutes")


def now() -> Fraction:
    """The moment, by this machine's clock."""
    return Fraction(round(datetime.now(timezone.utc).timestamp() * 10**6))


def parse_length(text: str, column: str, sql_type: str, option: str) -> Fraction:
    """A length of time, in microseconds or in the column's numbers.

    Raises:
        UserError: it is none.
    """
    if not is_time(sql_type):
        try:
            return Fraction(text)
        except (ValueError, ZeroDivisionError):
            raise UserError(
                f"{option}: {text!r} is no number, and column {column!r} is {sql_type}; write one"
            ) from None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(second|minute|hour|day|week)s?", text.strip(), re.IGNORECASE)
    if not found:
        raise UserError(f"{option}: {text!r} is not {OF_TIME}")
    return Fraction(found[1]) * MICROSECONDS[found[2].lower()]


def _moment(text: str) -> Fraction:
    found = datetime.fromisoformat(text.strip())
    if found.tzinfo is not None:
        found = found.astimezone(timezone.utc).replace(tzinfo=None)
    return Fraction((found - EPOCH) // timedelta(microseconds=1))


def _datetime(moment: Fraction) -> datetime:
    return EPOCH + timedelta(microseconds=round(moment))


def _number(value: Fraction) -> str:
    """Of a finite decimal."""
    return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"
