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
