"""Which days a rolling job does, and what it says: the query of the recipe tells, the steps of a day are left out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_rolling_record import RECORD

from recmtl import cli
from recmtl.config import load_config
from recmtl.errors import UserError
from recmtl.rolling import calendar, job
from recmtl.rolling.day import Day
from recmtl.rolling.record import DayRecord, Gate, load_records

RECIPE = """
sql = "select * from raw"
[[feature]]
name = "item"
[[task]]
name = "like"
label = "liked"
[split]
by = "time"
column = "at"
val = 0.0
test = 0.0
"""
FIRST_DAY = datetime(2023, 5, 1)


@dataclass
class Log:
    """A raw folder, and a job on it whose days are done as soon as they are begun."""

    folder: Path
    refused: set[str] = field(default_factory=set)
    """Days whose model is refused."""
    begun: list[tuple[str, str | None]] = field(default_factory=list)
    """Days that were done, and the day that each builds on."""
    options: dict[str, Any] = field(default_factory=dict)

    def add(self, *moments: Any) -> None:
        raw = self.folder / "raw"
        raw.mkdir(exist_ok=True)
        columns = {"item": list(range(len(moments))), "liked": [True] * len(moments), "at": list(moments)}
        pq.write_table(pa.table(columns), raw / f"{len(list(raw.iterdir())):03}.parquet")

    def roll(self, **options: Any) -> bool:
        self.begun.clear()
        (self.folder / "mine.toml").write_text(RECIPE)
        none = dict.fromkeys(("every", "start", "delay", "lookback", "keep", "redo_from"))
        given = {"ranks": 1, "test": 0.1, "gate": (), "memory_limit": "1GB", **self.options, **options}
        places = {"recipe": str(self.folder / "mine.toml"), "raw": self.folder / "raw", "out": self.folder / "out"}
        return job.roll(load_config("mmoe"), **places | none | given)

    @property
    def days(self) -> list[str]:
        return [day for day, _ in self.begun]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log(tmp_path)

    def do(day: Day) -> DayRecord:
        made.begun.append((day.name, day.before.day if day.before else None))
        gate = Gate(False, ("bad",)) if day.name in made.refused else Gate(True)
        record = replace(RECORD, day=day.name, since=day.since, until=day.until, gate=gate, today=None)
        record.save(day.settings.out)
        return record

    monkeypatch.setattr(Day, "do", do)
    return made


def hours(*numbers: float) -> list[datetime]:
    return [FIRST_DAY + timedelta(hours=number) for number in numbers]


def test_a_day_is_ready_when_the_log_is_past_its_end_by_the_delay(log, capsys):
    log.add(*hours(1, 24.5))
    assert log.roll()
    assert log.days == []
    assert capsys.readouterr().out == (
        f"nothing new: 2023-05-01 is ready when {log.folder}/raw reaches 2023-05-02 01:00:00, "
        "and it ends at 2023-05-02 00:30:00\n"
    )
    log.add(*hours(25))
    log.roll()
    assert log.days == ["2023-05-01"]
    log.roll()
    assert log.days == []
    log.roll(delay="0 hours")
    assert log.days == []
    log.add(*hours(48.5))
    log.roll(delay="30 minutes")
    assert log.begun == [("2023-05-02", "2023-05-01")]


def test_a_job_that_is_behind_does_one_day_after_the_other(log):
    log.add(*hours(1, 25, 49, 73, 74))
    log.roll()
    assert log.begun == [("2023-05-01", None), ("2023-05-02", "2023-05-01"), ("2023-05-03", "2023-05-02")]
    log.roll()
    assert log.begun == []


def test_the_first_day_has_all_rows_before_the_start(log):
    log.add(*hours(1, 25, 49, 73, 98))
    log.roll(start="2023-05-03")
    assert log.begun == [("2023-05-02", None), ("2023-05-03", "2023-05-02"), ("2023-05-04", "2023-05-03")]


def test_days_without_rows_are_said_and_skipped(log, capsys):
    log.add(*hours(1, 26))
    log.roll()
    log.add(*hours(24 * 5, 24 * 7, 24 * 9))
    log.roll()
    assert log.days == ["2023-05-02", "2023-05-06", "2023-05-08"]
    said = capsys.readouterr().out.splitlines()
    assert "2023-05-03 to 2023-05-05: no rows; skipped" in said
    assert "2023-05-07: no rows; skipped" in said


def test_after_a_refused_day_the_last_accepted_one_is_built_on(log, capsys):
    log.refused = {"2023-05-02"}
    log.add(*hours(1, 25, 50))
    assert not log.roll()
    assert "2023-05-02 refused: bad; " in capsys.readouterr().out
    assert not log.roll()  # while it is the newest day
    assert "; 2023-05-02 stays refused: bad" in capsys.readouterr().out
    log.add(*hours(73))
    assert log.roll()
    assert log.begun == [("2023-05-03", "2023-05-01")]


def test_a_first_day_that_is_refused_is_begun_again_by_the_next(log):
    log.refused = {"2023-05-01"}
    log.add(*hours(1, 25, 50, 74))
    assert log.roll()
    assert log.begun == [("2023-05-01", None), ("2023-05-02", None), ("2023-05-03", "2023-05-02")]


def test_redo_from_a_day(log):
    log.add(*hours(1, 25, 50, 74))
    log.roll()
    (log.folder / "out" / "data" / "2023-05-01").mkdir(parents=True)
    for kind in ("data", "runs"):
        (log.folder / "out" / kind / "2023-05-01").mkdir(parents=True, exist_ok=True)
        (log.folder / "out" / kind / "2023-05-01" / "dataset.json").touch()
    log.roll(redo_from="2023-05-02")
    assert log.begun == [("2023-05-02", "2023-05-01"), ("2023-05-03", "2023-05-02")]
    log.roll(redo_from="2023-05-01")
    assert log.days == ["2023-05-01", "2023-05-02", "2023-05-03"]


@pytest.mark.parametrize(
    ("moments", "every", "days"),
    [
        ([1, 9, 10, 25, 40], "10", ["0", "10", "20"]),
        ([0.05, 0.1, 0.25, 0.4], "0.1", ["0", "0.1", "0.2"]),
        ([date(2023, 5, 1), date(2023, 5, 2), date(2023, 5, 4)], None, ["2023-05-01", "2023-05-02"]),
        (hours(1, 7, 20, 25), "6 hours", ["2023-05-01T00:00", "2023-05-01T06:00", "2023-05-01T18:00"]),
    ],
)
def test_columns_of_all_kinds(log, moments, every, days):
    log.add(*moments)
    log.roll(every=every)
    assert [day.removesuffix("T00:00") for day in days] == log.days
    assert [record.day for record in load_records(log.folder / "out")] == log.days
    log.roll(every=every)
    assert log.days == []


def test_rows_in_the_future_make_no_day_ready(log, capsys, monkeypatch):
    """One mistaken moment would end every day to come before it is over."""
    monkeypatch.setattr(job, "now", lambda: calendar.Calendar.parse("at", "DATE", None).moment("2023-05-02", "now"))
    log.add(*hours(1, 13), datetime(2099, 1, 1))
    log.roll()
    assert log.days == []
    assert "note: 1 rows of" in capsys.readouterr().err
    log.add(*hours(26))  # a clock in the east is ahead
    log.roll()
    assert log.days == ["2023-05-01"]


def test_moments_that_are_none_are_no_rows_of_a_day(log):
    log.add(1.0, float("nan"), 2.0, float("inf"), 15.0)
    log.roll(every="10")
    assert log.days == ["0"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"start": "2023-05-02 06:00"}, "--start: no window begins at 2023-05-02 06:00; take 2023-05-02 00:00:00"),
        ({"start": "2023-05-01"}, "has no rows before 2023-05-01; take a later moment, or leave it out"),
        ({"start": "noon"}, "--start: 'noon' is no moment of column 'at'"),
        ({"every": "1 fortnight"}, "--every: '1 fortnight' is not a length of time"),
        ({"delay": "3"}, "--delay: '3' is not a length of time"),
        ({"gate": ("like.auc >= 0.7",), "test": 0.0}, "--gate: with --test 0 no day has test rows"),
        ({"gate": ("like.auc",)}, "--gate: 'like.auc' is no bound"),
        ({"recipe": "merrec"}, "by = 'random' tells no days apart"),
        ({"raw": Path("nowhere")}, "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line_and_no_day_is_begun(log, options, line):
    log.add(*hours(1, 25, 50))
    with pytest.raises(UserError) as refused:
        log.roll(**options)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert log.days == []


def test_windows_of_another_length_do_not_follow(log):
    log.add(*hours(1, 25, 50))
    log.roll(every="12 hours")
    assert log.days == ["2023-05-01", "2023-05-02"]
    with pytest.raises(UserError, match=r"--every: .* the last of which ends at 2023-05-02 12:00:00; take that length"):
        log.roll()


def test_two_jobs_in_one_folder_are_refused(log):
    from recmtl.runtime.locks import locked

    log.add(*hours(1, 25, 50))
    (log.folder / "out").mkdir()
    with locked(log.folder / "out" / ".lock", Path("out")), pytest.raises(UserError, match="in use by process"):
        log.roll()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["merrec_time", "raw", "out"],
            "recmtl roll: four words come first; the command is recmtl roll RECIPE RAW OUT",
        ),
        (["merrec_time", "raw", "--keep", "3", "out", "mmoe"], "recmtl roll: four words come first"),
        (["merrec_time", "raw", "out", "mmeo"], "'mmeo' is neither a preset nor a .toml file; did you mean 'mmoe'?"),
        (["merrec_time", "raw", "out", "mmoe", "--keep", "0"], "--keep: write one whole number from 1"),
        (["merrec_time", "raw", "out", "mmoe", "--test", "1"], "--test: write one number from 0 to below 1"),
        (["merrec_time", "raw", "out", "mmoe", "--training.epochs", "1"], "unknown option '--training.epochs'"),
        (["merrec_time", "raw", "out", "mmoe", "--every", "1", "day"], "--every"),
    ],
)
def test_words_that_are_none_are_one_line(tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        cli.roll(words)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
