"""Reports of data with tasks of several kinds, missing labels, weights and segments."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import dataset, number_task, task, write_run
from test_report_data import grids

from recmtl.report import report
from recmtl.report.calibration import calibration_plots
from recmtl.report.cost import cost_plots
from recmtl.report.curves import curve_plots
from recmtl.report.data_section import data_section
from recmtl.report.numbers import show_amount
from recmtl.report.rows import Row, by_dataset
from recmtl.report.runs import Run
from recmtl.report.segments import segments_section

BINS = {"rows": [300, 300], "prediction": [10.0, 40.0], "label": [-3.0, 45.0]}


def write(folder: Path, mae: float = 9.5, **changes: Any) -> Path:
    """A run with a binary task, and one of numbers that 600 of 1,000 test rows have."""
    changes = {
        "test": {"view": task(0.77, rows=1000, positives=125), "time": number_task(mae)},
        "logloss_sum": 0.4,
        "calibration_bins": {"test": {"time": BINS}},
        **changes,
    }
    return write_run(folder, **changes)


def rows_of(*runs: Path) -> list[Row]:
    (rows,) = by_dataset([Run.load(run) for run in runs]).values()
    return rows


def cells_of(markdown: str) -> dict[str, dict[str, str]]:
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    return {line[0]: dict(zip(lines[0][1:], line[1:], strict=True)) for line in lines[2:]}


def test_columns_are_those_of_each_kind_and_the_log_loss_is_of_binary_tasks(tmp_path):
    text = report([write(tmp_path / "a"), write(tmp_path / "b", 8.5, model="ple")], tmp_path / "out")
    table = cells_of(text)
    assert list(table["mmoe"])[:7] == [
        *("view AUC", "view log loss", "time MAE", "time RMSE", "time R²", "time XAUC", "log loss")
    ]
    assert table["mmoe"]["time MAE"] == "9.5000 ± 0.2500"
    assert table["ple"]["time MAE"] == "**8.5000 ± 0.2500**"  # lower is better
    assert table["mmoe"]["time RMSE"] == "**16.000 ± 0.500**"  # both are the best
    # The mean label for every row: its RMSE is the labels' deviation.
    base = table["base rate"]
    assert (base["time MAE"], base["time RMSE"], base["time R²"], base["time XAUC"]) == (
        *("–", "20.000", "0.0000", "0.5000"),
    )
    assert base["log loss"] == base["view log loss"]
    assert "1,000 test rows; positives: view 125; with a label: time 600." in text
    assert "The log loss without a task's name is summed over the binary tasks." in text
    with (tmp_path / "out" / "report.csv").open() as file:
        first = next(csv.DictReader(file))
    assert {"time MAE", "time MAE standard error", "time R² standard error"} <= set(first)


def test_without_binary_tasks_there_is_no_log_loss(tmp_path):
    runs = [write(tmp_path / name, test={"time": number_task(9)}, logloss_sum=None) for name in "ab"]
    text = report([runs[0]], tmp_path / "out")
    assert "log loss" not in text
    assert "time MAE" in text
    assert "log loss against time" not in cost_plots(rows_of(*runs))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "AUC less the best" not in page


def test_plots_are_those_of_the_kind(tmp_path):
    run = write(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        for step in (500, 600):
            line = {"step": step, "loss/time": 1.0, "val/time/loss": 0.9, "val/time/mae": 9.0}
            file.write(json.dumps(line) + "\n")
    rows = rows_of(run, write(tmp_path / "b", model="ple"))
    assert list(curve_plots(rows, "time")) == ["time: training loss", "time: validation loss", "time: validation MAE"]
    assert list(curve_plots(rows, "view"))[-1] == "view: validation AUC"
    assert "time MAE against time" in cost_plots(rows)
    calibration = calibration_plots(rows, "time")["time: calibration"]
    assert "mean label" in calibration
    assert "fraction of positives" not in calibration


def test_empty_bins_are_not_drawn(tmp_path):
    empty = {"rows": [], "prediction": [], "label": []}
    run = write(tmp_path / "a", calibration_bins={"test": {"time": empty}})
    assert calibration_plots(rows_of(run), "time") == {}


def test_the_data_section_tells_labels_apart(tmp_path):
    run = write(tmp_path / "a")
    rates = {"train": 0.1, "val": 0.12}
    observed = {"train": 4000, "val": 1000, "test": 0}
    tasks = [
        {"name": "view", "base_rate": rates, "observed": observed},
        {"name": "buy", "base_rate": rates, "observed": {"train": 8000}, "row_weight": True},
        {"name": "time", "kind": "duration", "base_rate": {"train": 25.456}, "observed": {"train": 5000}},
    ]
    (run / "dataset.json").write_text(json.dumps(dataset(tasks=tasks)))
    assert grids(data_section(rows_of(run)))[0][2:] == [
        ["view", "10 % 400 positives, 4,000 labels", "12 % 120 positives", "–"],
        ["buy", "10 % by weight", "12 % by weight", "–"],
        ["time", "25.456 5,000 labels", "–", "–"],
    ]


def segments(auc: float, mae: float) -> dict[str, Any]:
    tasks = {"view": task(auc, auc_se=0.01, rows=700), "time": number_task(mae, rows=300)}
    lacking = {"view": task(None, rows=300, base_rate=0.0, calibration=None), "time": number_task(None, rows=0)}
    values = [{"value": "<DE>", "rows": 700, "tasks": tasks}, {"value": "missing", "rows": 300, "tasks": lacking}]
    return {"test": {"country": {"values": values, "left_out": 3, "left_out_rows": 12}}}


def test_segments_are_a_table_for_each_task(tmp_path):
    one = segments_section(rows_of(write(tmp_path / "a", segments=segments(0.8, 9.0))))
    view, time = grids(one)
    assert re.findall("<h3>(.*?)</h3>", one) == ["view by country", "time by country"]
    assert view == [
        ["country", "rows", "base rate", "AUC", "log loss", "calibration"],
        ["&lt;DE&gt;", "700", "0.1250", "0.8000 ± 0.0100", "0.4000", "1.0000"],
        ["missing", "300", "0.0000", "–", "0.4000", "–"],
    ]
    assert time[0] == ["country", "rows", "mean label", "MAE", "RMSE", "bias"]
    assert time[1] == ["&lt;DE&gt;", "300", "25.500", "9.0000 ± 0.2500", "16.000 ± 0.500", "1.0200"]
    assert "3 more values, 12 rows" in one


def test_segments_of_several_runs_are_averaged_and_stand_beside_other_models(tmp_path):
    runs = [
        write(tmp_path / "a", segments=segments(0.8, 9.0)),
        write(tmp_path / "b", seed=101, segments=segments(0.9, 9.0)),
        write(tmp_path / "c", model="ple", segments=segments(0.7, 9.0)),
        write(tmp_path / "d", model="stem"),
    ]
    view, _ = grids(segments_section(rows_of(*runs)))
    assert view[0][3:] == [
        f"{model} {name}" for model in ("mmoe", "ple") for name in ("AUC", "log loss", "calibration")
    ]
    assert (view[1][3], view[1][6]) == ("0.8500", "0.7000 ± 0.0100")
    assert segments_section(rows_of(runs[3])) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (0.12345, "0.1235"), (12.3456, "12.346"), (-1234.56, "-1,234.6"), (123456.7, "123,457")],
)
def test_amounts_have_five_digits(value, text):
    assert show_amount(value) == text
