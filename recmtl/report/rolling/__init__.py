"""The report of a rolling job: what every day brought, by its records, which outlive data, runs and exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recmtl.errors import UserError
from recmtl.report.rolling.page import rolling_page
from recmtl.report.rolling.table import csv, markdown
from recmtl.rolling.record import DAYS, load_records
from recmtl.runtime.storage import list_folder


def rolling_folder(folders: Sequence[Path]) -> Path | None:
    """The folder of a rolling job, if it is what is to be reported; None: all are run folders.

    Raises:
        UserError: there are other folders beside it.
    """
    found = [folder for folder in folders if list_folder(folder / DAYS, "*.json")]
    if found and len(folders) > 1:
        raise UserError(f"{found[0]}: the folder of a rolling job; report it by itself")
    return found[0] if found else None


def rolling_files(folder: Path) -> dict[str, str]:
    """The text of every file of the report of a rolling job, by its name.

    Args:
        folder: of the job, with a day that is done.

    Raises:
        UserError: a record is damaged.
    """
    records, name = load_records(folder), folder.absolute().name
    return {
        "report.md": markdown(name, records),
        "report.csv": csv(records),
        "report.html": rolling_page(name, records),
    }
