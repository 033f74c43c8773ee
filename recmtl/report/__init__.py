"""``recmtl report``: the results of several runs as a table and a page of plots."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from recmtl.errors import UserError
from recmtl.report.page import page
from recmtl.report.rolling import rolling_files, rolling_folder
from recmtl.report.rows import Row, by_dataset
from recmtl.report.runs import Run, RunWithoutResults, load_run
from recmtl.report.table import csv, markdown, tabulate
from recmtl.report.without_results import html_section, markdown_section
from recmtl.runtime.storage import make_folder, write_whole


def report(runs: list[Path], out: Path) -> str:
    """Write ``OUT/report.md``, ``report.csv`` and ``report.html``; return the text of the first: a table a dataset.

    The first rows are the oracle, where the true probabilities are known, and the base rate: AUC 0.5 and, for a task
    with the fraction p of positive labels, log loss −p·ln p − (1 − p)·ln(1 − p). Then one row a model. Runs that
    differ only in their seed share a row: mean ± standard deviation (of a sample, n − 1); ± of a single run is its
    standard error over the choice of test rows. Bold is best, ≈ what these test rows cannot tell from it. The CSV has
    the same table in full precision. The page adds plots and the data; it is one file that loads nothing.

    Runs on other data are another dataset, also where it has the same name. A run that is unfinished, went on since it
    was measured, or has a damaged file is listed by name, and a line on stderr says why; the others are reported.

    The folder of a rolling job is reported by its days (`recmtl.report.rolling`) in the same three files.

    Args:
        runs: run folders, or the folder of one rolling job.
        out: folder for the report; made if it is not there.

    Raises:
        UserError: no runs, a folder is none of a run, or no run has results.
    """
    if not runs:
        raise UserError("no runs to report; name at least one run folder")
    if (rolling := rolling_folder(runs)) is not None:
        return _write(rolling_files(rolling), out)
    loaded = [load_run(folder) for folder in dict.fromkeys(runs)]
    measured = [run for run in loaded if isinstance(run, Run)]
    others = [run for run in loaded if isinstance(run, RunWithoutResults)]
    if not measured:
        raise UserError(f"no run has results: {'; '.join(run.reason for run in others)}")
    for run in others:
        print(run.reason, file=sys.stderr)
    return _write(_files(by_dataset(measured), others), out)


def _write(files: dict[str, str], out: Path) -> str:
    """Write the files; returns the text of the first."""
    for name, text in files.items():
        try:
            make_folder(out)
            write_whole(out / name, text + "\n")
        except OSError as error:
            raise UserError(f"{out / name}: cannot be written ({error.strerror})") from None
    return files["report.md"]


def _files(datasets: dict[str, list[Row]], others: Sequence[RunWithoutResults]) -> dict[str, str]:
    """The text of every file by its name."""
    tables = {dataset: tabulate(rows) for dataset, rows in datasets.items()}
    return {
        "report.md": "\n\n".join([markdown(tables), *([markdown_section(others)] if others else [])]),
        "report.csv": csv(tables, others),
        "report.html": page(datasets, tables, html_section(others) if others else ""),
    }
