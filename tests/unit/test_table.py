"""benchmarks/table.py: its rows, what it trains and what it prints; training itself is stood in for."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy import write_toy

from recmtl.config import MODELS

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import table

AUC = {"shared_bottom": 0.8, "single_task": 0.82}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Training writes results at once; yields (preset, task, seed) of what was trained."""
    done: list[tuple[str, str, int]] = []

    def train(command: str, preset: str, *arguments: Any, ranks: int = 1) -> None:
        assert command == "train"
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        seed, task = options["--training.seed"], options.get("--training.tasks", "")
        task = task or "".join(table.load_config(preset).training.tasks)
        done.append((preset, task, seed))
        auc = AUC.get(preset, 0.5) + (seed - 100) / 100
        metrics = {"auc": auc, "oracle_auc": 0.9, "base_rate": 0.5, "logloss": 0.6}
        results = {
            "seed": seed,
            "test": dict.fromkeys([task] if task else ["click", "like"], metrics),
            "logloss_sum": 1.2,
            "train_val_seconds": 90.0,
            "peak_memory_bytes": {"device": None, "host": 5e8},
            "examples_per_second": 12_345.0,
        }
        options["--run"].mkdir(parents=True)
        (options["--run"] / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(table, "recmtl", train)
    return done


def test_every_model_that_applies(tmp_path: Path) -> None:
    dataset = write_toy(tmp_path)  # no task has a parent
    rows, left_out = table.choose_rows(table.Options("toy"), dataset)
    assert {row.preset for row in rows} | set(left_out) == set(MODELS)
    assert [row.label for row in rows if row.preset == "single_task"] == [
        "single_task, only click",
        "single_task, only like",
    ]
    assert "parent" in left_out["esmm"]


def test_patterns_and_rows_of_one_task(tmp_path: Path) -> None:
    options = table.Options("toy", presets=("shared_b*", "shared_bottom"), alone=("shared_bottom",))
    rows, left_out = table.choose_rows(options, write_toy(tmp_path))
    assert [row.task for row in rows] == [None, "click", "like"]
    assert not left_out
    with pytest.raises(table.UserError, match="no preset matches 'mnoe'"):
        table.choose_rows(table.Options("toy", presets=("mnoe",)), write_toy(tmp_path / "again"))


def test_the_table(tmp_path: Path, trained: list[tuple[str, str, int]]) -> None:
    data = tmp_path / "data"
    dataset = write_toy(data)
    options = table.Options("toy", presets=("shared_bottom", "single_task"), seeds=2)
    rows, _ = table.choose_rows(options, dataset)
    results = table.train(options, rows, data, tmp_path / "runs")
    assert len(trained) == 6
    assert trained[:3] == [("shared_bottom", "", 100), ("single_task", "click", 100), ("single_task", "like", 100)]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.table(results, dataset).splitlines()]
    assert [line[0] for line in lines[2:]] == ["oracle", "base rate", *(row.label for row in rows)]
    assert lines[2][1:4] == ["0.9000", "0.9000", "–"]
    assert lines[3][1:4] == ["0.5000", "0.5000", "1.3863"]
    shown = ["0.8050 ± 0.0071"] * 2
    costs = ["1.2000 ± 0.0000", "1.50 ± 0.00", "0.50 ± 0.00", "12,345 ± 0"]
    assert lines[4] == ["shared_bottom", *shown, *costs, "-0.0200"]
    assert lines[5] == ["single_task, only click", "0.8250 ± 0.0071", "–", *costs, "–"]


def test_finished_runs_are_not_trained_again_but_changed_ones_are(
    tmp_path: Path, trained: list[tuple[str, str, int]]
) -> None:
    data = tmp_path / "data"
    rows, _ = table.choose_rows(table.Options("toy", presets=("shared_bottom",)), write_toy(data))
    results = [
        table.train(table.Options("toy", seeds=seeds, overrides=overrides), rows, data, tmp_path / "runs")
        for seeds, overrides in [(1, ""), (1, ""), (2, ""), (1, "--training.max_epochs 1")]
    ]
    assert results[0] == results[1]
    assert [seed for _, _, seed in trained] == [100, 101, 100]


def test_a_preset_of_one_task(tmp_path: Path, trained: list[tuple[str, str, int]]) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text('[model]\nname = "mmoe"\n[training]\ntasks = ["like"]\n')
    data = tmp_path / "data"
    dataset = write_toy(data)
    options = table.Options("toy", presets=(str(preset),), seeds=1)
    rows, _ = table.choose_rows(options, dataset)
    lines = table.table(table.train(options, rows, data, tmp_path / "runs"), dataset).splitlines()
    assert lines[0].startswith("| model | like AUC | log loss |")
    assert lines[-1].startswith("| mine | 0.5000 | 1.2000 |")


def test_tasks_whose_labels_are_numbers_have_their_mae(tmp_path: Path) -> None:
    dataset = write_toy(tmp_path)
    click, like = dataset.tasks
    mixed = replace(dataset, tasks=(click, replace(like, kind="regression", oracle=False)))
    test = {
        "click": {"auc": None, "oracle_auc": None, "base_rate": None, "logloss": None},  # no label in the test split
        "like": {"mae": 12.5, "mean_label": 30.0},
    }
    costs = {"train_val_seconds": 60.0, "peak_memory_bytes": {"device": None, "host": 5e8}, "examples_per_second": 1.0}
    run = {"test": test, "logloss_sum": 0.0, **costs}
    lines = table.table({table.Row("mmoe"): [run]}, mixed).splitlines()
    assert lines[0].startswith("| model | click AUC | like MAE | log loss |")
    assert lines[2].startswith("| base rate | 0.5000 | – | – |")
    assert lines[3].startswith("| mmoe | – | 12.5000 | 0.0000 |")
    numbers = replace(dataset, tasks=(mixed.tasks[1],))
    run = {"test": {"like": test["like"]}, "logloss_sum": None, **costs}
    assert table.table({table.Row("mmoe"): [run]}, numbers).splitlines()[3].startswith("| mmoe | 12.5000 | – |")
