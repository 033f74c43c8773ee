"""Every benchmark script runs at a tiny size and writes its two files; the numbers are for another day."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.slow


def run(script: str, out: Path, *args: object) -> dict[str, Any]:
    """Run a script; return the JSON it wrote."""
    command = [sys.executable, str(BENCHMARKS / script), "--out", str(out), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (written,) = out.glob("*.json")
    assert written.with_suffix(".md").exists()
    assert written.with_suffix(".md").read_text() in done.stdout
    return json.loads(written.read_text())


def test_reader(tmp_path: Path) -> None:
    results = run("reader.py", tmp_path / "out", "--events", 20_000, "--rounds", 1, "--batch-size", 256)
    assert results["features"] == 18
    assert set(results["rows_per_second"]) == {"copy", "decode", "reader", "again"}
    assert all(rate > 0 for rate in results["rows_per_second"].values())


def test_evaluation(tmp_path: Path) -> None:
    results = run("evaluation.py", tmp_path / "out", "--rows", 10_000)
    assert (results["ranks"], results["rows"], results["tasks"]) == (1, 10_000, 2)
    assert results["bytes"]["peak"] >= results["bytes"]["collected"] >= 0
    assert all(seconds > 0 for seconds in results["cpu_seconds"].values())


def test_steps(tmp_path: Path) -> None:
    sizes = ("--examples", 20_000, "--embedding-rows", 40_000, "--batch-size", 256, "--rounds", 1, "--steps", 2)
    variants = ("aitm", "stem:embedding.layout='side_by_side'")
    results = run("steps.py", tmp_path / "out", *variants, *sizes, "--device", "cpu")
    assert results["times_the_first"]["aitm"] == {"clock": 1.0, "cpu": 1.0}
    assert set(results["times_the_first"]) == set(variants)
    assert all(clock > 0 for taken in results["seconds_and_cpu_seconds"].values() for clock, _ in taken)


def test_throughput(tmp_path: Path) -> None:
    sizes = ("--examples", 20_000, "--embedding-rows", 40_000, "--batch-size", 256, "--rounds", 1, "--steps", 2)
    trace = tmp_path / "trace.json"
    results = run("throughput.py", tmp_path / "out", *sizes, "--device", "cpu", "--threads", 1, "--profile", trace)
    assert results["embedding_rows"] == 40_000
    assert {"pipeline", "fixed", "cycled", "plain", "loader"} < set(results["examples_per_second"])
    assert set(results["ratios"]) > {"pipeline / fixed", "pipeline / plain"}
    assert json.loads(trace.read_text())["traceEvents"]


def test_throughput_of_another_model(tmp_path: Path) -> None:
    sizes = ("--examples", 5_000, "--embedding-rows", 40_000, "--batch-size", 256, "--rounds", 1, "--steps", 2)
    results = run("throughput.py", tmp_path, *sizes, "--preset", "shared_bottom", "--device", "cpu")
    assert "plain" not in results["examples_per_second"]


def test_table(tmp_path: Path) -> None:
    sizes = ("--events", 20_000, "--seeds", 1, "--overrides=--training.max_steps 3", "--work", tmp_path / "work")
    results = run("table.py", tmp_path / "out", "merrec", "--presets", "single_t*", *sizes)
    assert [row["label"] for row in results["rows"]] == ["single_task, only view", "single_task, only like"]
    assert all(list(row["runs"][0]["test"]) == [row["task"]] for row in results["rows"])
    [page] = (tmp_path / "out").glob("*.md")
    rows = [line.split("|")[1].strip() for line in page.read_text().splitlines() if line.startswith("|")]
    assert rows == ["model", "---", "oracle", "base rate", "single_task, only view", "single_task, only like"]


def test_mmoe_correlation(tmp_path: Path) -> None:
    sizes = ("--seeds", 2, "--steps", 2, "--test-rows", 50, "--correlations", 1.0, 0.5)
    results = run("mmoe_correlation.py", tmp_path, *sizes)
    counts = results["parameters"].values()
    assert max(counts) < 1.01 * min(counts)
    assert set(results["losses"]) == {"shared_bottom", "omoe", "mmoe"}
    assert all(len(by_rate["0.001"]) == 2 for by_rate in results["losses"]["mmoe"].values())
    [figure] = tmp_path.glob("*.svg")
    assert "<svg" in figure.read_text()


def test_memory(tmp_path: Path) -> None:
    sizes = ("--examples", 5_000, "--embedding-rows", 40_000, "--batch-size", 256, "--steps", 2, "--dim", 16)
    results = run("memory.py", tmp_path, "shared_bottom", *sizes, "--dtypes", "float32", "float16", "--device", "cpu")
    full, half = results["runs"]
    assert full["parts"]["weights"] == 2 * half["parts"]["weights"] == 40_000 * 16 * 4
    for found in (full, half):
        assert found["predicted"] == sum(found["parts"].values())
        assert found["measured"]["host"] > found["measured"]["bare"] + found["parts"]["weights"]


def test_precision(tmp_path: Path) -> None:
    sizes = ("--events", 20_000, "--seeds", 1, "--overrides=--training.max_steps 3", "--work", tmp_path / "work")
    results = run("precision.py", tmp_path / "out", "shared_bottom", *sizes)
    assert set(results["runs"]) == {"float32", "float16"}
    losses = [found["shared_bottom"][0]["logloss_sum"] for found in results["runs"].values()]
    assert 0 < abs(losses[0] - losses[1]) < 1e-2
