"""The table of runs: what is in each cell, how seeds are merged, and what damaged input does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recmtl.errors import UserError
from recmtl.report import entropy, report

Cells = dict[str, dict[str, str]]


def task(auc: float | None, **changes: Any) -> dict[str, Any]:
    metrics = {"auc": auc, "oracle_auc": None, "gauc": None, "logloss": 0.4, "ne": 0.9, "calibration": 1.0}
    return {**metrics, "base_rate": 0.125, "rows": 1000, **changes}


def results(model: str = "mmoe", **changes: Any) -> dict[str, Any]:
    fields = {"model": model, "dataset": "merrec", "world_size": 2, "device": "cpu", "seed": 100, "epochs": 3}
    fields |= {"best_epoch": 2, "test": {"view": task(0.77), "like": task(0.73)}, "val": {}, "logloss_sum": 0.8}
    fields |= {"train_val_seconds": 90.0, "examples_per_second": 85_123.4, "versions": {}, "config_sha256": "0"}
    return {**fields, "peak_memory_bytes": {"device": None, "host": 1.5e9}, **changes}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a run folder."""

    def write(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(results(**changes)))
        return folder

    return write


def parse(markdown: str) -> Cells:
    """The cells of one table by row and column."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: dict(zip(lines[0][1:], line[1:], strict=True)) for line in lines[2:]}


def test_one_run(write: Write, tmp_path: Path) -> None:
    table = parse(report([write("a")], tmp_path / "out"))
    assert table["mmoe"] == {
        "view AUC": "0.7700",
        "view log loss": "0.4000",
        "like AUC": "0.7300",
        "like log loss": "0.4000",
        "log loss": "0.8000",
        "train+val": "1.5 min",
        "host GB": "1.50",
        "examples/s": "85,123",
        "epochs": "3",
    }


def test_file_holds_the_table(write: Write, tmp_path: Path) -> None:
    text = report([write("a")], tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out" / "report.md").read_text() == text + "\n"
    assert text == report([tmp_path / "a", tmp_path / "a"], tmp_path / "again")


def test_reference_rows(write: Write, tmp_path: Path) -> None:
    test = {"view": task(0.77, oracle_auc=0.82), "like": task(0.73, base_rate=0.5)}
    table = parse(report([write("a", test=test)], tmp_path))
    assert list(table) == ["oracle", "base rate", "mmoe"]
    assert (table["oracle"]["view AUC"], table["oracle"]["like AUC"]) == ("0.8200", "–")
    assert table["base rate"]["view AUC"] == "0.5000"
    assert table["base rate"]["like log loss"] == f"{math.log(2):.4f}"
    assert table["base rate"]["log loss"] == f"{math.log(2) + entropy(0.125):.4f}"
    assert table["base rate"]["train+val"] == "–"


def test_no_oracle_row_without_an_oracle(write: Write, tmp_path: Path) -> None:
    assert "oracle" not in parse(report([write("a")], tmp_path))


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0.0), (1.0, 0.0), (0.5, math.log(2)), (0.84551, 0.430419)])
def test_entropy(rate: float, expected: float) -> None:
    assert entropy(rate) == pytest.approx(expected, abs=1e-4)


def test_seeds_are_merged(write: Write, tmp_path: Path) -> None:
    aucs = (0.76, 0.77, 0.78)
    runs = [write(str(i), seed=i, test={"view": task(auc)}) for i, auc in enumerate(aucs)]
    row = parse(report(runs, tmp_path))["mmoe"]
    assert row["view AUC"] == "0.7700 ± 0.0100"
    assert row["view log loss"] == "0.4000 ± 0.0000"
    assert row["train+val"] == "1.5 ± 0.0 min"
    assert row["epochs"] == "3.0 ± 0.0"


def test_same_seed_twice_is_two_rows(write: Write, tmp_path: Path) -> None:
    runs = [write("a"), write("b")]
    assert list(parse(report(runs, tmp_path)))[1:] == [f"mmoe ({run})" for run in runs]


def test_other_number_of_ranks_is_another_row(write: Write, tmp_path: Path) -> None:
    runs = [write("a", seed=1), write("b", seed=2, world_size=1)]
    assert list(parse(report(runs, tmp_path)))[1:] == [f"mmoe ({run})" for run in runs]


def test_best_in_bold(write: Write, tmp_path: Path) -> None:
    better = {"test": {"view": task(0.78), "like": task(0.72)}, "logloss_sum": 0.7, "train_val_seconds": 7200.0}
    table = parse(report([write("a"), write("b", model="ple", **better)], tmp_path))
    assert (table["mmoe"]["view AUC"], table["ple"]["view AUC"]) == ("0.7700", "**0.7800**")
    assert (table["mmoe"]["like AUC"], table["ple"]["like AUC"]) == ("**0.7300**", "0.7200")
    assert (table["mmoe"]["log loss"], table["ple"]["log loss"]) == ("0.8000", "**0.7000**")
    assert (table["mmoe"]["train+val"], table["ple"]["train+val"]) == ("**1.5 min**", "2.0 h")
    assert table["mmoe"]["epochs"] == table["ple"]["epochs"] == "3"
    assert "**" not in table["base rate"]["view AUC"]


def test_single_task_run_beside_others(write: Write, tmp_path: Path) -> None:
    alone = {"test": {"like": task(0.75)}, "logloss_sum": 0.4}
    table = parse(report([write("a"), write("b", model="single_task", **alone)], tmp_path))
    assert table["single_task"]["view AUC"] == table["single_task"]["log loss"] == "–"
    assert table["single_task"]["like AUC"] == "**0.7500**"
    assert table["mmoe"]["log loss"] == "0.8000"


def test_optional_columns(write: Write, tmp_path: Path) -> None:
    test = {"view": task(0.77, gauc=0.6), "like": task(None)}
    memory = {"device": 3.94e9, "host": None}
    row = parse(report([write("a", test=test, peak_memory_bytes=memory)], tmp_path))["mmoe"]
    assert row["view GAUC"] == "0.6000"
    assert row["device GB"] == "3.94"
    assert row["like AUC"] == "–"
    assert not {"like GAUC", "host GB"} & set(row)


def test_a_table_for_each_dataset(write: Write, tmp_path: Path) -> None:
    text = report([write("a"), write("b", dataset="census", test={"income": task(0.95)})], tmp_path)
    assert [line for line in text.splitlines() if line.startswith("##")] == ["## census", "## merrec"]
    assert "view AUC" not in text.split("## merrec")[0]


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs"):
        report([], tmp_path)


def test_missing_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json: cannot be read"):
        report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damaged(change: dict[str, Any]) -> str:
    return json.dumps({**results(), **change})


@pytest.mark.parametrize(
    "text",
    [
        '{"model": ',
        "[]",
        "{}",
        damaged({"test": None}),
        damaged({"test": {"view": {"auc": "high"}}}),
        damaged({"peak_memory_bytes": {"host": 1}}),
        damaged({"seed": None}),
    ],
)
def test_damaged_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json: damaged") as caught:
        report([tmp_path], tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_binary_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="damaged"):
        report([tmp_path], tmp_path / "out")


def test_unwritable_report(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"report\.md: cannot be written"):
        report([write("a")], tmp_path / "file")
