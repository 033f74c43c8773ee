"""What a rolling job keeps in its folder: what each day made, the link to what is served, and what goes again.

OUT/data/DAY  runs/DAY  exports/DAY  logs/DAY    current ──▶ exports/DAY    days/DAY.json
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from recmtl.errors import UserError
from recmtl.rolling.record import DAYS, DayRecord, load_records, order_of
from recmtl.runtime.storage import (
    exists,
    is_file,
    is_link,
    list_folder,
    read_text,
    real_path,
    remove,
    remove_folder,
    rename,
    replace_link,
    write_whole,
)
from recmtl.schema import FILE_NAME

DATA, RUNS, EXPORTS, LOGS = "data", "runs", "exports", "logs"
OF_A_DAY = (EXPORTS, RUNS, DATA, LOGS)
"""Folders with a folder a day."""
CURRENT = "current"
REDO = "redo"
"""File with the day from which on everything is being forgotten: a job that was killed meanwhile goes on with that."""
GONE, UNFINISHED = ".gone", ".tmp"
"""End the hidden names of a folder that is being removed and of one that is being written."""


def last_accepted(records: Iterable[DayRecord]) -> DayRecord | None:
    """The newest day whose model took over; None: there is none."""
    return next((record for record in reversed(list(records)) if record.gate.accepted), None)


def serve_day(out: Path, day: str) -> None:
    """Have ``OUT/current`` lead to the export of a day, at once."""
    if _served(out) != day:
        replace_link(out / CURRENT, Path(EXPORTS) / day)


def keep_newest(out: Path, records: list[DayRecord], keep: int) -> None:
    """Remove what the days before the `keep` newest ones made, but for what is served and what the next day builds on.

    Args:
        out: the job's folder.
        records: of the days that are done, by time.
        keep: how many days.
    """
    kept = {record.day for record in records[-keep:]} | {_served(out)}
    if accepted := last_accepted(records):
        kept.add(accepted.day)
    for record in records:
        if record.day not in kept:
            _remove_day(out, record.day)


def ask_redo(out: Path, day: str) -> None:
    """Have `finish_redo` forget everything from a day on.

    Raises:
        UserError: it is no day, or what it would build on is gone.
    """
    days = [path.stem for path in list_folder(out / DAYS, "*.json")]
    try:
        order = order_of(day)
        if any(_is_number(day) != _is_number(other) for other in days):
            raise ValueError
    except ValueError:
        raise UserError(f"--redo-from: {day!r} is no day such as {days[-1] if days else '2023-05-01'}") from None
    accepted = last_accepted(load_records(out, before=order))
    if accepted and not _can_be_built_on(out, accepted.day):
        known = load_records(out)
        first = known[0].day
        later = [one for one, two in zip(known[1:], known, strict=False) if _can_be_built_on(out, two.day)]
        rest = f", days from {later[0].day} on" if later else ""
        raise UserError(
            f"--redo-from: {day} builds on {accepted.day}, whose data and run are gone (--keep); the first day {first} "
            f"can be redone{rest}"
        )
    write_whole(out / REDO, day)


def finish_redo(out: Path) -> None:
    """Forget everything from the day on that was asked for, if any was. `OUT/current` goes back to the last export
    before it, and is removed where there is none.
    """
    if not is_file(out / REDO):
        return
    order = order_of(read_text(out / REDO))
    forgotten = {path.name for kind in OF_A_DAY for path in list_folder(out / kind) if _is_from(path.name, order)}
    if _served(out) in forgotten:
        before = last_accepted(load_records(out, before=order))
        if before and exists(out / EXPORTS / before.day):
            serve_day(out, before.day)
        else:
            remove(out / CURRENT)
    for day in forgotten:
        _remove_day(out, day)
    for path in list_folder(out / DAYS):
        if _is_from(path.stem.lstrip("."), order):
            remove(path)
    remove(out / REDO)


def remove_leftovers(out: Path) -> None:
    """Remove what a killed job was about to remove, or had begun to write."""
    for kind in OF_A_DAY:
        for ending in (GONE, UNFINISHED):
            for path in list_folder(out / kind, f".*{ending}"):
                remove_folder(path)


def _remove_day(out: Path, day: str) -> None:
    """Remove what a day made: each folder is there as a whole or not at all."""
    for kind in OF_A_DAY:
        if exists(out / kind / day):
            remove_folder(rename(out / kind / day, out / kind / f".{day}{GONE}"))


def _served(out: Path) -> str | None:
    """The day whose export `OUT/current` leads to."""
    return real_path(out / CURRENT).name if is_link(out / CURRENT) else None


def _can_be_built_on(out: Path, day: str) -> bool:
    return is_file(out / DATA / day / FILE_NAME) and is_file(out / RUNS / day / FILE_NAME)


def _is_from(name: str, order: float) -> bool:
    """Whether a name is that of a day from some moment on."""
    try:
        return order_of(name) >= order
    except ValueError:  # of what is none of this job's
        return False


def _is_number(day: str) -> bool:
    try:
        float(day)
    except ValueError:
        return False
    return True
