"""What a rolling job keeps, removes and forgets, and that a kill in between changes nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_rolling_record import RECORD

from recmtl.errors import UserError
from recmtl.rolling import folders
from recmtl.rolling.folders import ask_redo, finish_redo, keep_newest, remove_leftovers, serve_day
from recmtl.rolling.record import DayRecord, Gate, load_records
from recmtl.schema import FILE_NAME

KINDS = ("data", "runs", "exports", "logs")


def make(out: Path, accepted: str) -> list[DayRecord]:
    """The folder of a job that did a day a letter: + was accepted, - refused; the last accepted one is served."""
    for number, sign in enumerate(accepted, 1):
        day = f"2023-05-{number:02}"
        for kind in KINDS:
            if kind != "exports" or sign == "+":
                (out / kind / day).mkdir(parents=True)
                (out / kind / day / FILE_NAME).touch()
        gate = Gate(sign == "+", () if sign == "+" else ("bad",))
        replace(RECORD, day=day, since=f"{day} 00:00:00", gate=gate).save(out)
        if sign == "+":
            serve_day(out, day)
    return load_records(out)


def days(out: Path, kind: str) -> list[int]:
    return [int(path.name[-2:]) for path in sorted((out / kind).iterdir()) if not path.name.startswith(".")]


def served(out: Path) -> str:
    return str((out / "current").readlink())


@pytest.mark.parametrize(
    ("accepted", "keep", "kept", "exports"),
    [
        ("++++", 2, [3, 4], [3, 4]),
        ("++++", 1, [4], [4]),
        ("++++", 9, [1, 2, 3, 4], [1, 2, 3, 4]),
        ("++--", 1, [2, 4], [2]),  # the next day builds on the second
        ("++-+", 2, [3, 4], [4]),
        ("--", 1, [2], []),
    ],
)
def test_the_newest_days_stay_and_what_the_next_one_builds_on(tmp_path, accepted, keep, kept, exports):
    records = make(tmp_path, accepted)
    keep_newest(tmp_path, records, keep)
    assert [days(tmp_path, kind) for kind in ("data", "runs", "logs")] == [kept] * 3
    if exports:
        assert days(tmp_path, "exports") == exports
    assert load_records(tmp_path) == records


def test_what_is_served_stays_also_where_somebody_else_chose_it(tmp_path):
    records = make(tmp_path, "++++")
    serve_day(tmp_path, "2023-05-01")
    keep_newest(tmp_path, records, 1)
    assert days(tmp_path, "exports") == [1, 4]
    assert served(tmp_path) == "exports/2023-05-01"


def test_redo_forgets_from_a_day_on_and_serves_the_one_before(tmp_path):
    make(tmp_path, "+-++")
    (tmp_path / "data" / "2023-05-05").mkdir()  # begun, and not done
    (tmp_path / "days" / ".2023-05-05.cost").touch()
    ask_redo(tmp_path, "2023-05-03")
    finish_redo(tmp_path)
    assert [record.day for record in load_records(tmp_path)] == ["2023-05-01", "2023-05-02"]
    assert [days(tmp_path, kind) for kind in ("data", "runs", "logs")] == [[1, 2]] * 3
    assert days(tmp_path, "exports") == [1]
    assert served(tmp_path) == "exports/2023-05-01"
    assert sorted(path.name for path in (tmp_path / "days").iterdir()) == ["2023-05-01.json", "2023-05-02.json"]


def test_redo_of_the_first_day_leaves_nothing(tmp_path):
    make(tmp_path, "++")
    ask_redo(tmp_path, "2023-04-30")
    finish_redo(tmp_path)
    assert not os.path.lexists(tmp_path / "current")
    assert load_records(tmp_path) == []
    assert days(tmp_path, "runs") == []


def test_redo_of_a_later_day_changes_nothing_that_is_served(tmp_path):
    make(tmp_path, "+++")
    serve_day(tmp_path, "2023-05-01")
    ask_redo(tmp_path, "2023-05-03")
    finish_redo(tmp_path)
    assert served(tmp_path) == "exports/2023-05-01"


@pytest.mark.parametrize("survivors", range(1, 7))
def test_a_redo_that_is_killed_is_finished_by_the_next_start(tmp_path, monkeypatch, survivors):
    make(tmp_path, "++++")
    ask_redo(tmp_path, "2023-05-02")
    left = survivors
    for name in ("remove", "remove_folder"):
        real = getattr(folders, name)

        def dying(path: Path, real=real) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise SystemExit
            real(path)

        monkeypatch.setattr(folders, name, dying)
    with pytest.raises(SystemExit):
        finish_redo(tmp_path)
    monkeypatch.undo()
    finish_redo(tmp_path)
    remove_leftovers(tmp_path)
    assert [record.day for record in load_records(tmp_path)] == ["2023-05-01"]
    assert {path.name for kind in KINDS for path in (tmp_path / kind).iterdir()} == {"2023-05-01"}
    assert served(tmp_path) == "exports/2023-05-01"
    finish_redo(tmp_path)  # and no other start forgets anything
    assert len(load_records(tmp_path)) == 1


def test_a_damaged_record_is_done_again(tmp_path):
    make(tmp_path, "++")
    (tmp_path / "days" / "2023-05-02.json").write_text("{")
    with pytest.raises(UserError, match="--redo-from 2023-05-02"):
        load_records(tmp_path)
    ask_redo(tmp_path, "2023-05-02")
    finish_redo(tmp_path)
    assert len(load_records(tmp_path)) == 1


def test_redo_needs_what_the_day_builds_on(tmp_path):
    records = make(tmp_path, "++++")
    keep_newest(tmp_path, records, 2)
    with pytest.raises(UserError) as refused:
        ask_redo(tmp_path, "2023-05-03")
    assert str(refused.value) == (
        "--redo-from: 2023-05-03 builds on 2023-05-02, whose data and run are gone (--keep); "
        "the first day 2023-05-01 can be redone, days from 2023-05-04 on"
    )
    finish_redo(tmp_path)
    assert load_records(tmp_path) == records
    ask_redo(tmp_path, "2023-05-04")
    finish_redo(tmp_path)
    assert [record.day for record in load_records(tmp_path)] == [f"2023-05-0{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("day", ["yesterday", "5", "2023-05-32"])
def test_a_day_that_is_none_is_one_line(tmp_path, day):
    make(tmp_path, "+")
    with pytest.raises(UserError, match=f"--redo-from: '{day}' is no day such as 2023-05-01"):
        ask_redo(tmp_path, day)
