"""The table of runs: what is in each cell, which runs share a row, and what damaged input does."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from report_runs import task, write_results, write_run

from recmtl.errors import UserError
from recmtl.metrics.entropy import entropy
from recmtl.report import report

Cells = dict[str, dict[str, str]]


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a run folder with results alone."""
    return lambda name, **changes: write_results(tmp_path / name, **changes)


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


def test_a_run_that_goes_on_from_another_is_no_repetition_of_one_from_new_weights(write: Write, tmp_path: Path) -> None:
    started = [{"run": f"monday{seed}", "data_fingerprint": "ab12cd34" * 4, "step": 9} for seed in (1, 2)]
    runs = [write("new1", seed=1), write("new2", seed=2, start_from=None)]
    runs += [write(f"on{seed}", seed=seed, start_from=start) for seed, start in enumerate(started, 1)]
    names = list(parse(report(runs, tmp_path / "report")))[1:]
    assert names == [f"mmoe ({runs[0]}, {runs[1]})", f"mmoe ({runs[2]}, {runs[3]})"]


def test_same_seed_twice_is_two_rows(write: Write, tmp_path: Path) -> None:
    runs = [write("a"), write("b")]
    assert list(parse(report(runs, tmp_path)))[1:] == [f"mmoe ({run})" for run in runs]


def test_other_number_of_ranks_is_another_row(write: Write, tmp_path: Path) -> None:
    runs = [write("a", seed=1), write("b", seed=2, world_size=1)]
    assert list(parse(report(runs, tmp_path)))[1:] == [f"mmoe ({run})" for run in runs]


def test_other_settings_are_another_row(tmp_path: Path) -> None:
    """Whatever the seeds: only runs of one configuration are repetitions."""
    runs = [
        write_run(tmp_path / "a", seed=1),
        write_run(tmp_path / "b", seed=2),
        write_run(tmp_path / "c", seed=3, experts=8),
    ]
    names = list(parse(report(runs, tmp_path / "out")))[1:]
    assert names == [f"mmoe ({runs[0]}, {runs[1]})", f"mmoe ({runs[2]})"]


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


def test_other_data_is_another_dataset(write: Write, tmp_path: Path) -> None:
    """Whatever its name: its metrics do not compare. Headings tell them apart, in the order of the runs."""
    large = [write(name, model=name, data_fingerprint="aaaabbbbcccc", test={"view": task(0.7)}) for name in ("a", "b")]
    small = write("small", seed=101, model="a", data_fingerprint="0000111122223333")
    text = report([*large, small, write("census", dataset="census")], tmp_path / "out")
    headings = ["census", "merrec (aaaabbbb)", "merrec (00001111)"]
    assert [line for line in text.splitlines() if line.startswith("##")] == [f"## {name}" for name in headings]
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.findall("<h1>(.*?)</h1>", page) == headings
    assert "±" not in text
    assert [row["dataset"] for row in rows_of_csv(tmp_path / "out") if row["runs"]] == [*headings[:2], *headings[1:]]


def test_fingerprints_that_begin_alike_are_shown_further(write: Write, tmp_path: Path) -> None:
    runs = [write(last, data_fingerprint=f"aaaabbbbc{last}ddd") for last in "12"]
    text = report(runs, tmp_path / "out")
    assert "## merrec (aaaabbbbc1)" in text
    assert "## merrec (aaaabbbbc2)" in text


def test_without_test_rows_there_is_no_loss(write: Write, tmp_path: Path) -> None:
    """Neither of the model nor of the base rate."""
    text = report([write("a", test={}, logloss_sum=None)], tmp_path / "out")
    table = parse(text)
    assert list(table) == ["mmoe"]
    assert table["mmoe"]["log loss"] == "–"
    assert [row["log loss"] for row in rows_of_csv(tmp_path / "out")] == [""]


def rows_of_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_holds_the_table_in_full_precision(write: Write, tmp_path: Path) -> None:
    aucs = (0.7612345678, 0.7712345678)
    runs = [write(str(seed), seed=seed, test={"view": task(auc, oracle_auc=0.9)}) for seed, auc in enumerate(aucs)]
    report([*runs, write("census", dataset="census", model="a,b", test={"income": task(0.95)})], tmp_path / "out")
    census_base, census, oracle, base, merrec = rows_of_csv(tmp_path / "out")
    assert (census["dataset"], census["model"], census["runs"]) == ("census", "a,b", "1")
    assert (census["income AUC"], census["income AUC deviation"], census["view AUC"]) == ("0.95", "", "")
    assert (merrec["model"], merrec["runs"], merrec["income AUC"]) == ("mmoe", "2", "")
    assert float(merrec["view AUC"]) == pytest.approx(sum(aucs) / 2, abs=1e-15)
    assert float(merrec["view AUC deviation"]) == pytest.approx(0.01 / math.sqrt(2), abs=1e-15)
    assert (merrec["train+val seconds"], merrec["host bytes"]) == ("90.0", "1500000000.0")
    assert (oracle["model"], oracle["runs"], oracle["view AUC"]) == ("oracle", "", "0.9")
    assert (base["view AUC"], census_base["income AUC"]) == ("0.5", "0.5")


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs"):
        report([], tmp_path)


def test_unwritable_report(write: Write, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"report\.md: cannot be written"):
        report([write("a")], tmp_path / "file")
