"""``recmtl roll``: one job for every day."""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from recmtl.config import Config, to_toml
from recmtl.data.prepare.moments import Moments, find_moments, is_time
from recmtl.data.recipe import Recipe, load_recipe
from recmtl.errors import UserError
from recmtl.rolling.calendar import MICROSECONDS, Calendar, now
from recmtl.rolling.day import Day, Settings, describe
from recmtl.rolling.folders import (
    CURRENT,
    EXPORTS,
    ask_redo,
    finish_redo,
    keep_newest,
    last_accepted,
    remove_leftovers,
)
from recmtl.rolling.gate import Bound
from recmtl.rolling.record import DayRecord, load_records
from recmtl.runtime.folders import scratch_folder
from recmtl.runtime.locks import locked
from recmtl.runtime.storage import make_folder, os_errors, renames_folders, write_whole

CONFIG, LOCK = "config.toml", ".lock"
AHEAD = 14 * MICROSECONDS["hour"]
"""How far a log may be ahead of this machine's clock, which is UTC's: that of the easternmost time zone."""


def roll(
    config: Config,
    *,
    recipe: str,
    raw: Path,
    out: Path,
    every: str | None,
    start: str | None,
    delay: str | None,
    lookback: str | None,
    ranks: int,
    keep: int | None,
    test: float,
    gate: tuple[str, ...],
    redo_from: str | None,
    memory_limit: str,
) -> bool:
    """Do every day that is ready and not done, one after the other.

    Args:
        config: of every run.
        recipe: name or path.
        raw: folder of the raw files.
        out: the job's folder.
        every: length of a day; None: of dates and timestamps a day.
        start: first moment of the second day, of a job that begins; None: the first day is the first window with rows.
        delay: how far the log must be past a day's end before the day is done, and how far labels look ahead; None: of
            dates and timestamps an hour, else 0.
        lookback: how far a day's query sees before it; None: all that there is.
        ranks: processes that train and measure.
        keep: how many days' data, runs and exports stay; None: all.
        test: share of a day's rows, the last ones, that test.
        gate: bounds that a day's model must keep.
        redo_from: forget everything from this day on first; None: nothing.
        memory_limit: of preparing, such as ``4GB``.

    Returns:
        Whether the model of the newest day was accepted.

    Raises:
        UserError: an argument, a file or a column has a mistake.
        StepFailed: a step of a day ended with an error.
        Stopped: SIGTERM came to the job or to a step.
    """
    if not renames_folders(out):
        raise UserError(f"{out}: a job for every day has links in its folder; name one on a disk, RAW may be elsewhere")
    loaded = load_recipe(recipe)
    if loaded.split.by != "time":
        raise UserError(
            f"{loaded.origin}: [split]: by = {loaded.split.by!r} tells no days apart; a job for every day needs "
            "by = 'time'"
        )
    if gate and not test:
        raise UserError("--gate: with --test 0 no day has test rows to judge by; set it to 0.1, or leave the gate out")
    bounds = [Bound.parse(text, loaded, tuple(config.training.tasks)) for text in gate]
    with os_errors(out):
        make_folder(out)
        with locked(out / LOCK, out):
            if redo_from is not None:
                ask_redo(out, redo_from)
            finish_redo(out)
            remove_leftovers(out)
            write_whole(out / CONFIG, to_toml(config))
            settings = Settings(recipe, raw, out, out / CONFIG, "", lookback, ranks, test, bounds, memory_limit)
            return _Job(loaded, settings, every, start, delay).do(keep)


class _Job:
    """A job as it stands, with the days that can be done.

    Args:
        recipe: of the data.
        settings: of every day, but for the delay.
        every: as `roll` takes it; so are `start` and `delay`.
    """

    def __init__(
        self, recipe: Recipe, settings: Settings, every: str | None, start: str | None, delay: str | None
    ) -> None:
        self.recipe, self.out, self.raw = recipe, settings.out, settings.raw
        self.records = load_records(self.out)
        self.moments = moments = self._find_moments(settings, every)
        self.calendar = calendar = Calendar.parse(str(recipe.split.column), moments.sql_type, every)
        if delay is None:
            delay = "1 hour" if is_time(moments.sql_type) else "0"
        self.delay = calendar.length(delay, "--delay")
        self.settings = replace(settings, delay=delay)
        self.last = max((last for _, last in moments.spans), default=None)
        """The last moment of the log."""
        self.windows = self._windows(start)
        """Starts of the windows that are not done, with rows, by time; the first one of a job that begins may have none
        but for those before it."""

    def do(self, keep: int | None) -> bool:
        """Do what is ready; returns whether the newest day's model was accepted."""
        done = 0
        for start in self.windows:
            if self.last is None or start + self.calendar.every + self.delay > self.last:
                break
            self._say_gap(start)
            record = Day(self.settings, self.calendar, start, last_accepted(self.records), _say).do()
            self.records.append(record)
            self._say_outcome(record)
            done += 1
            if keep is not None:
                with os_errors(self.out):
                    keep_newest(self.out, self.records, keep)
        if not done:
            self._say_nothing_new()
        return not self.records or self.records[-1].gate.accepted

    def _find_moments(self, settings: Settings, every: str | None) -> Moments:
        column = str(self.recipe.split.column)
        with scratch_folder(self.out / LOCK) as work:
            moments = find_moments(
                self.recipe,
                self.raw,
                lambda sql_type: Calendar.parse(column, sql_type, every).every,
                since=self.records[-1].until if self.records else None,
                lookback=settings.lookback,
                latest=now() + AHEAD,
                memory_limit=settings.memory_limit,
                work=work,
            )
        if moments.ahead:
            print(
                f"note: {moments.ahead:,} rows of {self.raw} are later than this machine's clock and count for nothing",
                file=sys.stderr,
            )
        return moments

    def _windows(self, start: str | None) -> list[Fraction]:
        """Starts of the windows that are not done.

        Raises:
            UserError: `--start` or `--every` does not fit.
        """
        calendar = self.calendar
        found = sorted({calendar.start(moment) for span in self.moments.spans for moment in span})
        if self.records:
            until = calendar.moment(self.records[-1].until, "--every")
            if calendar.start(until) != until:
                raise UserError(
                    f"--every: {self.out} was made by windows of another length, the last of which ends at "
                    f"{self.records[-1].until}; take that length"
                )
            return found
        if start is None:
            return found
        first = calendar.moment(start, "--start")
        if (begins := calendar.start(first)) != first:
            raise UserError(f"--start: no window begins at {start}; take {calendar.text(begins)}")
        if found and found[0] >= first:
            raise UserError(f"--start: {self.raw} has no rows before {start}; take a later moment, or leave it out")
        return [first - calendar.every, *(window for window in found if window >= first)] if found else []

    def _say_gap(self, start: Fraction) -> None:
        calendar = self.calendar
        if not self.records:
            return
        empty = calendar.moment(self.records[-1].until, "--every")
        if empty < start:
            names = dict.fromkeys((calendar.name(empty), calendar.name(start - calendar.every)))
            _say(f"{' to '.join(names)}: no rows; skipped")

    def _say_outcome(self, record: DayRecord) -> None:
        if not record.gate.accepted:
            _say(f"{record.day} refused: {_reasons(record)}; {self._served()}")
            return
        today = f": {describe(record.today.metrics)}" if record.today else ""
        before = record.today.yesterday if record.today else {}
        yesterday = f" (yesterday's model: {describe(before)})" if before else ""
        _say(f"{record.day} accepted{today}{yesterday}; {self._served()}")

    def _served(self) -> str:
        """Where the link leads."""
        accepted = last_accepted(self.records)
        return f"{self.out / CURRENT} is {EXPORTS}/{accepted.day}" if accepted else "nothing is served"

    def _say_nothing_new(self) -> None:
        calendar = self.calendar
        if self.records and not self.records[-1].gate.accepted:
            stays = f"; {self.records[-1].day} stays refused: {_reasons(self.records[-1])}"
        else:
            stays = ""
        if self.windows and self.last is not None:
            end = calendar.text(self.windows[0] + calendar.every + self.delay)
            last, name = calendar.text(self.last), calendar.name(self.windows[0])
            _say(f"nothing new: {name} is ready when {self.raw} reaches {end}, and it ends at {last}{stays}")
        else:
            since = f" from {self.records[-1].until} on" if self.records else ""
            _say(f"nothing new: {self.raw} has no rows{since}{stays}")


def _reasons(record: DayRecord) -> str:
    return "; ".join(record.gate.reasons)


def _say(line: str) -> None:
    print(line, flush=True)
