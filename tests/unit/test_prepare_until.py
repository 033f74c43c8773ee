"""`recmtl prepare --until`: rows before a moment alone are written, and the next extension loses and doubles none."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recmtl import cli
from recmtl.data.prepare.extension import Extend
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.errors import UserError
from recmtl.schema import Dataset

RECIPE = """
sql = '''
select *, lead(n) over (order by "at", n) is not null as is_followed from raw
'''
[[feature]]
name = "n"
[[task]]
name = "click"
label = "click"
[[task]]
name = "followed"
label = "is_followed"
[split]
by = "time"
column = "at"
val = 0.0
test = 0.0
"""
FIRST_DAY = datetime(2023, 5, 1)


class Log:
    """A raw folder with rows of some moments, and the data that are made of it."""

    def __init__(self, folder: Path, moments: list[Any] = (), labels: list[int | None] | None = None) -> None:
        self.folder, self.raw = folder, folder / "raw"
        self.raw.mkdir()
        (folder / "mine.toml").write_text(RECIPE)
        if moments:
            self.add(moments, labels)

    def add(self, moments: list[Any], labels: list[int | None] | None = None, first: int = 0) -> None:
        numbers = range(first, first + len(moments))
        labels = labels or [number % 2 for number in numbers]
        columns = {"n": list(numbers), "at": moments, "click": pa.array(labels, pa.int8())}
        pq.write_table(pa.table(columns), self.raw / f"{first:04}.parquet")

    def prepare(self, name: str, extend: str | None = None, since: str | None = None, **options: Any) -> Dataset:
        asked = Extend(self.folder / extend, since) if extend else None
        recipe = load_recipe(str(self.folder / "mine.toml"))
        return prepare(recipe, self.raw, self.folder / name, extend=asked, **options)

    def rows(self, name: str, column: str = "label_click") -> list[Any]:
        return pq.read_table(self.folder / name / "train").column(column).to_pylist()

    def written(self, *names: str) -> list[int]:
        """The numbers of the rows in some folders, which the first one's vocabulary and those after it name."""
        found = []
        for name in names:
            values = dict(
                zip(*pq.read_table(self.folder / name / "vocab" / "n.parquet", columns=["id", "value"]), strict=True)
            )
            values = {number.as_py(): value.as_py() for number, value in values.items()}
            found += [values[number] for number in self.rows(name, "n")]
        return sorted(found)


def hours(*numbers: float) -> list[datetime]:
    return [FIRST_DAY + timedelta(hours=number) for number in numbers]


@pytest.mark.parametrize(
    ("moments", "until"),
    [
        (hours(1, 23.99, 24, 25), "2023-05-02"),
        ([value.date() for value in hours(1, 2, 24, 48)], "2023-05-02"),
        ([1, 2, 3, 4], "3"),
        ([0.25, 0.5, 0.75, 1.0], "0.75"),
    ],
)
def test_rows_from_that_moment_on_are_left_out(tmp_path, moments, until):
    log = Log(tmp_path, moments)
    assert log.prepare("one", until=until).rows["train"] == 2
    assert log.prepare("two", extend="one").rows["train"] == 2
    assert log.written("one", "two") == [0, 1, 2, 3]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_windows_that_follow_each_other_lose_and_double_no_row(tmp_path_factory, moments, ends):
    """Whatever lies near their bounds, nothing included: the last one has no bound."""
    log = Log(tmp_path_factory.mktemp("log"), [min(moments), *moments])
    names: list[str] = []
    last = -1
    for until in [*sorted({end for end in ends if min(moments) < end}), None]:
        name, extend = f"before {until}", names[-1] if names else None
        found = [moment for moment in moments if last < moment and (until is None or moment < until)]
        if not found:
            with pytest.raises(UserError, match="no rows"):
                log.prepare(name, extend, until=None if until is None else str(until))
            continue
        log.prepare(name, extend, until=None if until is None else str(until))
        names.append(name)
        last = max(found)
    assert log.written(*names) == list(range(len(moments) + 1))


def test_a_row_that_comes_late_is_the_next_window_s_unless_that_begins_later(tmp_path):
    log = Log(tmp_path, hours(1, 2, 25))
    log.prepare("one", until="2023-05-02")
    assert Dataset.load(log.folder / "one").until == "2023-05-01 02:00:00"
    log.add(hours(20), first=3)
    log.prepare("two", extend="one", until="2023-05-03")
    assert log.written("two") == [2, 3]
    log.prepare("strict", extend="one", since="2023-05-02", until="2023-05-03")
    assert log.written("strict") == [2]


def test_a_row_without_labels_at_a_window_s_end_waits_for_one(tmp_path):
    log = Log(tmp_path)
    text = (log.folder / "mine.toml").read_text()
    (log.folder / "mine.toml").write_text(text.replace('[[task]]\nname = "followed"\nlabel = "is_followed"\n', ""))
    log.add(hours(1, 23, 25), [0, None, 1])
    assert log.prepare("one", until="2023-05-02").unlabelled == 1
    (log.raw / "0000.parquet").unlink()
    log.add(hours(1, 23, 25), [0, 1, 1])
    log.prepare("two", extend="one")
    assert log.written("one", "two") == [0, 1, 2]


def test_labels_look_ahead_as_far_as_they_may(tmp_path):
    log = Log(tmp_path, hours(1, 2, 25, 30))
    for name, lookahead, followed in (("all", None, [1, 1]), ("far", "2 hours", [1, 1]), ("near", "1 hour", [0, 1])):
        log.prepare(name, until="2023-05-02", lookahead=lookahead)
        assert sorted(log.rows(name, "label_followed")) == followed


def test_what_is_seen_of_later_rows_does_not_depend_on_how_many_there_are(tmp_path):
    log = Log(tmp_path, hours(1, 2, 24.5))
    first = log.prepare("one", until="2023-05-02", lookahead="1 hour")
    log.add(hours(24.9, 25, 50), first=3)
    again = log.prepare("again", until="2023-05-02", lookahead="1 hour")
    assert again.data_fingerprint == first.data_fingerprint


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--until", "noon"], "--until: 'noon' is no TIMESTAMP, which column 'at' is"),
        (["--until", "2023-05-01"], "sql yields no rows before 2023-05-01 from these files"),
        (["--lookahead", "1 hour"], "--lookahead: says how far the query sees after --until; give both"),
        (["--until", "2023-05-02", "--lookahead", "soon"], "--lookahead: 'soon' is not a length of time"),
        (["--extend", "one", "--until", "2023-05-01"], "--until: 2023-05-01 is no later than 2023-05-01 02:00:00"),
        (
            ["--extend", "one", "--since", "2023-05-03", "--until", "2023-05-03"],
            "--until: 2023-05-03 is no later than 2023-05-03, where the new rows begin",
        ),
        (
            ["--extend", "one", "--until", "2023-05-01 03:00"],
            "no rows after 2023-05-01 02:00:00 and before 2023-05-01 03:00, by which",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, words, line):
    log = Log(tmp_path, hours(1, 2, 25))
    log.prepare("one", until="2023-05-02")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        cli.prepare(["mine.toml", "raw", "out", *words])
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_split_by_time_has_no_until(tmp_path):
    log = Log(tmp_path, hours(1, 2))
    text = (log.folder / "mine.toml").read_text()
    (log.folder / "mine.toml").write_text(text.replace('by = "time"\ncolumn = "at"', 'by = "random"'))
    with pytest.raises(UserError, match=r"--until: .*by = 'random' .*--until needs by = 'time'"):
        log.prepare("one", until="2023-05-02")
