"""``recmtl report``: the results of several runs as a table and a page of plots."""

from __future__ import annotations

from pathlib import Path

from recmtl.errors import UserError
from recmtl.report.page import page
from recmtl.report.rows import by_dataset
from recmtl.report.runs import Run
from recmtl.report.table import csv, markdown, tabulate


def report(runs: list[Path], out: Path) -> str:
    """Write ``OUT/report.md``, ``report.csv`` and ``report.html``; return the text of the first: a table a dataset.

    The first rows are the oracle, where the true probabilities are known, and the base rate: AUC 0.5 and, for a task
    with the fraction p of positive labels, log loss −p·ln p − (1 − p)·ln(1 − p). Then one row a model. Runs that
    differ only in their seed share a row: mean ± standard deviation (of a sample, n − 1). Bold is best. The CSV has
    the same table in full precision. The page adds plots; it is one file that loads nothing.

    Args:
        runs: folders of finished runs.
        out: folder for the report; made if it is not there.

    Raises:
        UserError: no runs, or a file of a run is missing or damaged.
    """
    if not runs:
        raise UserError("no runs to report; name at least one run folder")
    datasets = by_dataset([Run.load(folder) for folder in dict.fromkeys(runs)])
    tables = {dataset: tabulate(rows) for dataset, rows in datasets.items()}
    files = {"report.md": markdown(tables), "report.csv": csv(tables), "report.html": page(datasets, tables)}
    for name, text in files.items():
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text + "\n", encoding="utf-8")
        except OSError as problem:
            raise UserError(f"{out / name}: cannot be written ({problem.strerror})") from None
    return files["report.md"]
