"""The page's section on the data, with all that is known of it and with little."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import dataset, task, write_results, write_run

from recmtl.errors import UserError
from recmtl.report.data_section import LONG, data_section
from recmtl.report.rows import Row, by_dataset
from recmtl.report.runs import Run


def rows_of(run: Path) -> list[Row]:
    (rows,) = by_dataset([Run.load(run)]).values()
    return rows


def section(folder: Path, more: str = "", **changes: Any) -> str:
    run = write_run(folder / "run", more=more)
    (run / "dataset.json").write_text(json.dumps(dataset(**changes)))
    return data_section(rows_of(run))


def grids(text: str) -> list[list[list[str]]]:
    """The cells of every table, line by line, without tags."""
    tables = re.findall(r"<table.*?</table>", text, flags=re.DOTALL)
    lines = [re.split("<tr>", table)[1:] for table in tables]
    return [[[re.sub("<[^>]*>", " ", c).strip() for c in re.split("<t[hd]>", r)[1:]] for r in table] for table in lines]


def features(count: int) -> list[dict[str, Any]]:
    return [
        {
            "name": f"f{i}",
            "kind": "categorical",
            "table": "item",
            "missing": {"train": 0.5, "test": 0.25},
            "unseen": {"test": i / 1000},
        }
        for i in range(count)
    ]


def test_rows_labels_and_tables(tmp_path: Path) -> None:
    labels, tables = grids(section(tmp_path, "[embedding]\ndim = 16\n"))
    assert labels == [
        ["", "train", "val", "test"],
        ["rows", "8,000", "1,000", "1,000"],
        *([name, "10 % 800 positives", "12 % 120 positives", "12.5 % 125 positives"] for name in ("view", "like")),
    ]
    assert tables == [["table", "rows", "dimension"], ["user", "90,000", "8"], ["item", "5,000", "16"]]


def test_a_split_without_rows_has_no_base_rate(tmp_path: Path) -> None:
    tasks = [{"name": "view", "base_rate": {"train": 0.5}}]
    labels = grids(section(tmp_path, rows={"train": 10, "val": 0, "test": 0}, tasks=tasks))[0]
    assert labels[1:] == [["rows", "10", "0", "0"], ["view", "50 % 5 positives", "–", "–"]]


def test_features_by_what_the_test_split_has_unseen(tmp_path: Path) -> None:
    text = section(tmp_path, features=[*features(3), {"name": "price", "kind": "numeric", "table": None}])
    assert "<details>" not in text
    assert grids(text)[2] == [
        ["feature", "kind", "table", "missing, train", "missing, test", "unseen, test"],
        ["f2", "categorical", "item", "50 %", "25 %", "0.2 %"],
        ["f1", "categorical", "item", "50 %", "25 %", "0.1 %"],
        ["f0", "categorical", "item", "50 %", "25 %", "0 %"],
    ]


def test_long_lists_are_folded_up(tmp_path: Path) -> None:
    text = section(tmp_path, features=features(LONG + 1))
    assert f"<details><summary>Missing and unseen values of {LONG + 1} features</summary>" in text
    assert grids(text)[2][1][0] == f"f{LONG}"


def test_what_is_not_known_is_not_shown(tmp_path: Path) -> None:
    assert "issing" not in section(tmp_path)


def test_names_are_text(tmp_path: Path) -> None:
    text = section(
        tmp_path, tables=[{"name": "<b>", "rows": 1, "dim": 1}], features=[{**features(1)[0], "name": "<i>"}]
    )
    assert "&lt;b&gt;" in text
    assert "&lt;i&gt;" in text
    assert "<i>" not in text


def test_without_a_dataset_file_the_results_tell(tmp_path: Path) -> None:
    run = write_results(tmp_path / "run", test={"view": task(0.7, positives=125), "like": task(None, base_rate=0.0)})
    text = data_section(rows_of(run))
    assert grids(text) == [
        [["", "test"], ["rows", "1,000"], ["view", "12.5 % 125 positives"], ["like", "0 % 0 positives"]]
    ]
    assert "No dataset.json." in text


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": {"train": "many"}}'])
def test_a_damaged_dataset_file(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "run")
    (run / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json: damaged") as caught:
        Run.load(run)
    assert "\n" not in str(caught.value)
