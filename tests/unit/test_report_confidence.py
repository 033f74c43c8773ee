"""How sure a report is of its AUCs: ±, ≈ and the differences to the best, in every file of it."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import folds, task, write_results

from recmtl.metrics.jackknife import standard_error
from recmtl.report import report
from recmtl.report.confidence import auc_error, gaps
from recmtl.report.rows import Row, by_dataset
from recmtl.report.runs import Run

SAME = (0.0001, -0.0001)
"""What the choice of test rows does to every model alike."""


def write(folder: Path, model: str, auc: float, spreads: tuple[float, ...] = SAME, **changes: Any) -> Path:
    """A run of the task `view` with an AUC whose folds are known."""
    view = task(auc, positives=125, **folds(auc, *spreads))
    return write_results(folder, model=model, test={"view": {**view, **changes.pop("view", {})}}, **changes)


def rows_of(runs: list[Path]) -> list[Row]:
    (rows,) = by_dataset([Run.load(run) for run in runs]).values()
    return rows


def test_a_gap_is_to_the_best(tmp_path: Path) -> None:
    """Where the test rows move all models alike, a difference is certain."""
    runs = [
        write(tmp_path / "a", "mmoe", 0.7702, (0.0003, 0.0001)),
        write(tmp_path / "b", "ple", 0.7705),
        write(tmp_path / "c", "aitm", 0.77),
    ]
    found = gaps(rows_of(runs), "view")
    assert [gap and gap.difference for gap in found] == pytest.approx([-0.0003, 0, -0.0005])
    assert [gap and gap.error for gap in found] == pytest.approx([0, 0, 0], abs=1e-12)
    assert [gap and gap.is_open for gap in found] == [False, True, False]


def test_what_both_owe_to_the_test_rows_falls_out(tmp_path: Path) -> None:
    own = (0.0003, -0.0001, 0.0, 0.0001)
    runs = [write(tmp_path / "a", "ple", 0.7705), write(tmp_path / "b", "mmoe", 0.77, own)]
    rows = rows_of(runs)
    gap = gaps(rows, "view")[1]
    assert gap is not None
    assert gap.error == pytest.approx(standard_error([own[i % 4] - SAME[i % 2] for i in range(100)]))
    assert auc_error(rows[1], "view") == pytest.approx(standard_error([own[i % 4] for i in range(100)]))


def test_seeds_are_averaged_fold_by_fold(tmp_path: Path) -> None:
    """Errors of two seeds that go against each other cancel, and the spread over seeds is no part of it."""
    runs = [
        write(tmp_path / "1", "mmoe", 0.76, (0.0004, 0.0002), seed=1),
        write(tmp_path / "2", "mmoe", 0.78, (0.0, -0.0002), seed=2),
        write(tmp_path / "3", "ple", 0.771),
    ]
    row, other = rows_of(runs)
    assert auc_error(row, "view") == pytest.approx(standard_error([0.0002, 0.0] * 50))
    gap = gaps([row, other], "view")[0]
    assert gap is not None
    assert gap.difference == pytest.approx(-0.001)
    assert gap.error == pytest.approx(0, abs=1e-12)


def test_models_that_cannot_be_told_apart_are_marked(tmp_path: Path) -> None:
    own = (0.0001, -0.0001, -0.0001, 0.0001)  # the error of the difference to `SAME` is about .0014
    runs = [
        write(tmp_path / "best", "ple", 0.7705),
        write(tmp_path / "equal", "mmoe", 0.769, own),
        write(tmp_path / "worse", "aitm", 0.76, own),
    ]
    error = standard_error([a - b for a, b in zip(own * 25, SAME * 50, strict=True)])
    assert error is not None
    text = report(runs, tmp_path / "out")
    single = f"{standard_error(list(SAME) * 50):.4f}"
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in text.splitlines() if "|" in line}
    assert cells["ple"] == f"**0.7705 ± {single}**"
    assert cells["mmoe"] == f"0.7690 ± {single} ≈"
    assert cells["aitm"] == f"0.7600 ± {single}"
    assert f"- view: ple best, mmoe −0.0015 ± {error:.4f} ≈, aitm −0.0105 ± {error:.4f}" in text
    assert "1,000 test rows; positives: view 125." in text
    assert "± of a single run is the standard error" in text
    assert "≈ marks an AUC" in text
    assert "standard deviation" not in text

    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"0.7690<small>≈ ± {single[1:]}</small>" in page
    assert f"<strong>0.7705<small>± {single[1:]}</small></strong>" in page
    table = page.split("AUC less the best")[1].split("</table>")[0]
    assert re.findall("<td>([^<]*)", table) == ["best", f"−0.0015 ± {error:.4f} ≈", f"−0.0105 ± {error:.4f}"]

    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert float(rows["mmoe"]["view AUC standard error"]) == pytest.approx(standard_error(own * 25))
    assert float(rows["mmoe"]["view AUC difference to best"]) == pytest.approx(-0.0015)
    assert float(rows["mmoe"]["view AUC difference to best standard error"]) == pytest.approx(error)
    assert rows["ple"]["view AUC difference to best"] == "0.0"
    assert rows["mmoe"]["view AUC deviation"] == rows["base rate"]["view AUC standard error"] == ""


def test_equal_models_are_equal(tmp_path: Path) -> None:
    """The same predictions: the difference and its error are 0, and both are best."""
    text = report([write(tmp_path / "a", "ple", 0.77), write(tmp_path / "b", "mmoe", 0.77)], tmp_path / "out")
    assert text.count("**0.7700 ± 0.0010**") == 2
    assert "- view: ple best, mmoe best" in text


def test_the_deviation_over_seeds_and_the_error_are_said_apart(tmp_path: Path) -> None:
    seeds = [write(tmp_path / str(seed), "mmoe", auc, seed=seed) for seed, auc in enumerate((0.76, 0.78))]
    text = report([*seeds, write(tmp_path / "c", "ple", 0.79)], tmp_path / "out")
    assert f"0.7700 ± {math.sqrt(2) / 100:.4f}" in text
    assert "**0.7900 ± 0.0010**" in text
    assert "± of several runs is the standard deviation over their seeds" in text
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["model"] == "mmoe")
    assert float(row["view AUC deviation"]) == pytest.approx(math.sqrt(2) / 100)
    assert float(row["view AUC standard error"]) == pytest.approx(standard_error(list(SAME) * 50))


def test_log_loss_has_its_error(tmp_path: Path) -> None:
    text = report([write(tmp_path / "a", "mmoe", 0.77, view={"logloss_se": 0.0012})], tmp_path / "out")
    assert "| 0.4000 ± 0.0012 |" in text


@pytest.mark.parametrize(
    "other",
    [
        {"auc_folds": None, "auc_se": None},
        {"auc_folds": [None, *[0.77, 0.76] * 49, 0.77]},  # another fold is empty: other test rows
    ],
)
def test_what_is_not_comparable_is_not_marked(tmp_path: Path, other: dict[str, Any]) -> None:
    runs = [write(tmp_path / "a", "ple", 0.7701), write(tmp_path / "b", "mmoe", 0.77, view=other)]
    text = report(runs, tmp_path / "out")
    assert "≈" not in text
    assert "best" not in text


def test_a_run_without_test_rows_has_no_loss(tmp_path: Path) -> None:
    run = write_results(tmp_path / "a", test={}, logloss_sum=0.0)
    lines = report([run], tmp_path / "out").splitlines()
    assert lines[2].split(" | ")[:2] == ["| model", "log loss"]
    assert [line.split(" | ")[:2] for line in lines[4:]] == [["| mmoe", "–"]]
