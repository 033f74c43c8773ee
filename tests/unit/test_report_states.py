"""Runs without results that hold: said and listed, and no hindrance to the report of the others."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_runs import STEPS, results, write_results, write_run

from recmtl.errors import UserError
from recmtl.report import report
from recmtl.schema import Dataset, Feature, Table, Task


def stopped(folder: Path, step: int) -> Path:
    """A run that was killed with its newest checkpoint at `step`; 0: before the first."""
    run = write_run(folder)
    (run / "results.json").unlink()
    Dataset("shop", {}, (Table("a", 2),), (Feature("a", table="a"),), (Task("t"),)).save(run)
    if step:
        add_checkpoint(run, step)
    return run


def add_checkpoint(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
    (run / "checkpoints" / f".step-{step + 5:09d}.tmp").mkdir()
    (run / "checkpoints" / f"damaged-step-{step + 6:09d}").mkdir()


def damaged(change: dict[str, Any]) -> str:
    return json.dumps({**results(), **change})


def test_an_unfinished_run_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, run = write_run(tmp_path / "good"), stopped(tmp_path / "killed", 47)
    text = report([run, good], tmp_path / "out")
    reason = f"{run}: unfinished at step 47, without results.json; the same `recmtl train` command goes on"
    assert capsys.readouterr().err.splitlines() == [reason]
    assert "0.7700" in text
    assert text.splitlines()[-5:] == [
        "## Runs without results",
        "",
        "| run | dataset | model | state | step |",
        "| --- | --- | --- | --- | ---: |",
        f"| {run} | shop | mmoe | unfinished | 47 |",
    ]
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        *others, last = csv.DictReader(file)
    known = {"dataset": "shop", "model": f"mmoe ({run})", "runs": "1", "state": "unfinished", "step": "47"}
    assert {key: value for key, value in last.items() if value} == known
    assert all(row["state"] == row["step"] == "" for row in others)
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<tr><td>{run}<td>shop<td>mmoe<td>unfinished<td>47" in page


def test_without_such_runs_nothing_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = report([write_run(tmp_path / "good")], tmp_path / "out")
    assert "without" not in text
    assert "Runs without" not in (tmp_path / "out" / "report.html").read_text()
    assert capsys.readouterr().err == ""


def test_a_run_that_was_killed_before_it_wrote_anything(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / ".lock").touch()
    text = report([write_run(tmp_path / "good"), tmp_path / "bare"], tmp_path / "out")
    assert text.endswith(f"| {tmp_path / 'bare'} | – | – | unfinished | 0 |")


def test_a_run_that_went_on_is_outdated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its results are of another model than the newest one; as long as they are of the newest step they hold."""
    good, run = write_run(tmp_path / "good", seed=1), write_run(tmp_path / "run", seed=2)
    for step in (STEPS - 10, STEPS):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        add_checkpoint(run, step)
        assert "outdated" not in report([good, run], tmp_path / str(step))
    shutil.rmtree(run / "checkpoints")
    add_checkpoint(run, STEPS + 60)
    capsys.readouterr()
    text = report([good, run], tmp_path / "out")
    assert f"| {run} | – | mmoe | outdated | 460 |" in text
    assert "±" not in text
    assert capsys.readouterr().err == f"{run}: outdated at step 460, results.json is of step 400; let it finish\n"


DAMAGED = [
    '{"model": ',
    "[]",
    "{}",
    damaged({"test": None}),
    damaged({"test": {"view": {"auc": "high"}}}),
    damaged({"peak_memory_bytes": {"host": 1}}),
    damaged({"seed": None}),
    damaged({"steps": None}),
    damaged({"seconds": {"train": "long"}}),
    damaged({"calibration_bins": {"test": {"view": {"rows": [1]}}}}),
    json.dumps({key: value for key, value in results().items() if key != "data_fingerprint"}),
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_results(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_results(tmp_path / "run")
    (run / "results.json").write_text(text)
    assert_named(run, tmp_path, capsys, f"{run / 'results.json'}: damaged")


def test_binary_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_results(tmp_path / "run")
    (run / "results.json").write_bytes(b"\xff\xfe\x00")
    assert_named(run, tmp_path, capsys, f"{run / 'results.json'}: damaged")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plan.json", '{"shards": [', "damaged"),
        ("plan.json", '{"cluster": {}, "shards": []}', "damaged"),
        ("config.toml", "[model", "not valid TOML"),
    ],
)
def test_damaged_files_beside_the_results(
    tmp_path: Path, name: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text(text)
    assert_named(run, tmp_path, capsys, f"{run / name}: {message}")


def assert_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    """Alone it is an error that leaves no report; beside another run a line, and a place in the list."""
    with pytest.raises(UserError) as caught:
        report([run], tmp_path / "out")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    text = report([write_run(tmp_path / "good"), run], tmp_path / "out")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(words)
    assert "| damaged | 0 |" in text.splitlines()[-1]


def test_no_run_has_results(tmp_path: Path) -> None:
    runs = [stopped(tmp_path / name, step) for name, step in (("a", 0), ("b", 20))]
    with pytest.raises(UserError, match=r"no run has results: .*a: unfinished at step 0.*b: unfinished at step 20"):
        report(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """A folder of runs, or a slip of the pen: it must not pass for a run that will finish."""
    good = write_run(tmp_path / "runs" / "good")
    for folder in (tmp_path / "runs", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"{folder}: no run in it; name folders that `recmtl train` wrote"):
            report([good, folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()
