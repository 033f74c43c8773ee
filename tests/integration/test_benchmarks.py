"""Every benchmark script runs at a tiny size and writes its two files; the numbers are for another day."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PATIENCE = 3600.0
"""Seconds until a script that hangs is given up."""


def run(script: str, out: Path, *args: object) -> dict[str, Any]:
    """Run a script; return the JSON it wrote."""
    command = [sys.executable, str(BENCHMARKS / script), "--out", str(out), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    (written,) = out.glob("*.json")
    assert written.with_suffix(".md").exists()
    assert written.with_suffix(".md").read_text() in done.stdout
    assert str(out) not in written.with_suffix(".md").read_text()
    return json.loads(written.read_text())


@pytest.mark.slow
def test_prepare(tmp_path: Path) -> None:
    sizes = ("--events", 20_000, 5_000, "--wide", "list", "shared_table", "--wide-rows", 5_000)
    results = run("prepare.py", tmp_path / "out", *sizes, "--work", tmp_path)
    assert [found["events"] for found in results["runs"]] == [5_000, 20_000]
    for found in results["runs"]:
        [prepared], [query] = found["prepare"], found["query"]
        assert found["ratio"] == prepared["cpu_seconds"] / query["cpu_seconds"]
        assert all(value > 0 for used in (prepared, query) for value in used.values())
    assert [found["rows"] for found in results["wide"]] == [5_000, 5_000]
    assert all(found["cpu_seconds"] > 0 < found["peak_bytes"] for found in results["wide"])
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.spark
def test_spark(tmp_path: Path) -> None:
    results = run("spark.py", tmp_path / "out", "--events", 5_000, "--work", tmp_path)
    assert results["spark"]["cpu_seconds"] > results["duckdb"]["cpu_seconds"] > 0
    assert (
        results["spark"]["peak_bytes"] > results["spark"]["java_peak_bytes"] > 0 == results["duckdb"]["java_peak_bytes"]
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.slow
def test_scale(tmp_path: Path) -> None:
    results = run("scale.py", tmp_path / "out", "--gpus", 1, 2, "--page", tmp_path / "page.md")
    month, six_months, hundred = results["estimates"].values()
    assert [estimate["gpus"] for estimate in month] == [1, 2]
    # Tables of 1.0 GB with their state, and of 8.7 GB for six months of users and sessions alone.
    assert month[0]["memory"]["weights"] + month[0]["memory"]["states"] == pytest.approx(1.04e9, rel=0.01)
    assert six_months[0]["largest_dim"] < six_months[1]["largest_dim"]
    assert [estimate["memory"] for estimate in hundred] == [None, None]
    assert "(page.svg)" in (tmp_path / "page.md").read_text()
    assert "<svg" in (tmp_path / "page.svg").read_text()


def test_histories(tmp_path: Path) -> None:
    sizes = ("--lengths", 14, "--encoders", "mean", "hstu", "--events", 8_000, "--batch-size", 128)
    results = run("histories.py", tmp_path / "out", *sizes, "--rounds", 1, "--steps", 1, "--device", "cpu")
    assert list(results["times_the_first"]) == ["none –", "mean 14", "hstu 14"]
    assert results["times_the_first"]["none –"] == {"clock": 1, "cpu": 1}
    assert all(ratio > 0 for of in results["times_the_first"].values() for ratio in of.values())


def test_reader(tmp_path: Path) -> None:
    results = run("reader.py", tmp_path / "out", "--events", 20_000, "--rounds", 1, "--batch-size", 256)
    assert results["features"] == 18
    assert set(results["rows_per_second"]) == {"copy", "decode", "reader", "again"}
    assert all(rate > 0 for rate in results["rows_per_second"].values())


@pytest.mark.slow
def test_reader_of_lists(tmp_path: Path) -> None:
    results = run("reader.py", tmp_path / "out", "--wide", "list", "--wide-rows", 5_000, "--rounds", 1)
    assert (results["features"], results["target_rows_per_second"]) == (1, 2_000_000)
    assert all(rate > 0 for rate in results["rows_per_second"].values())


@pytest.mark.slow
def test_many_files(tmp_path: Path) -> None:
    sizes = ("--files", 30, "--file-rows", 500, "--different", 3, "--batch-size", 64, "--streams", 8, "--batches", 50)
    results = run("many_files.py", tmp_path / "out", *sizes, "--ranks", 1, 2)
    assert [found["ranks"] for found in results["runs"]] == [1, 2]
    assert [0 < found["open_files"] <= 8 // found["ranks"] for found in results["runs"]] == [True, True]
    assert all(found["peak_bytes"] >= found["bare_bytes"] > 0 for found in results["runs"])


@pytest.mark.slow
def test_evaluation(tmp_path: Path) -> None:
    results = run("evaluation.py", tmp_path / "out", "--rows", 10_000)
    assert (results["ranks"], results["rows"], results["tasks"]) == (1, 10_000, 2)
    assert results["bytes"]["peak"] >= results["bytes"]["rows"] >= 0
    assert all(seconds > 0 for seconds in results["cpu_seconds"].values())


def test_steps(tmp_path: Path) -> None:
    sizes = ("--examples", 20_000, "--embedding-rows", 40_000, "--batch-size", 256, "--rounds", 1, "--steps", 2)
    variants = ("aitm", "stem:embedding.placement='sharded'")
    results = run("steps.py", tmp_path / "out", *variants, *sizes, "--device", "cpu")
    assert results["times_the_first"]["aitm"] == {"clock": 1.0, "cpu": 1.0}
    assert set(results["times_the_first"]) == set(variants)
    assert all(clock > 0 for taken in results["seconds_and_cpu_seconds"].values() for clock, _ in taken)


@pytest.mark.slow
def test_startup(tmp_path: Path) -> None:
    sizes = ("--embedding-rows", 40_000, "--dim", 8, "--ranks", 1, "--rounds", 1, "--device", "cpu")
    results = run("startup.py", tmp_path / "out", "mmoe", *sizes)
    assert set(results["starts"]) == {"new 1", "resume 1", "evaluate 1", "predict 1"}
    assert all(turn["cpu_seconds"] > 0 for [turn] in results["starts"].values())


@pytest.mark.slow
def test_throughput(tmp_path: Path) -> None:
    sizes = ("--examples", 20_000, "--embedding-rows", 40_000, "--rounds", 1, "--steps", 2, "--device", "cpu")
    cases = ("mmoe:model.experts=2", "--batch-sizes", 256, 512, "--ranks", 1, 2)
    traces = tmp_path / "traces"
    results = run("throughput.py", tmp_path / "out", *cases, *sizes, "--threads", 1, "--traces", traces)
    assert results["embedding_rows"] == 40_000
    found = {(case["variant"], case["batch_size"], case["ranks"]): case for case in results["cases"]}
    assert set(found) == set(itertools.product(("mmoe:model.experts=2",), (256, 512), (1, 2)))
    for (_, batch_size, ranks), case in found.items():
        parts = {"read", "lookup", "lookup and update", "dense"} | (
            {"all-to-all", "all-reduce"} if ranks > 1 else set()
        )
        assert set(case["milliseconds"]) == parts | {"bare step", "pipeline", "cycled", "fixed"}
        assert case["examples_per_second"] == pytest.approx(1000 * batch_size / case["milliseconds"]["pipeline"])
        times = case["cpu_milliseconds"]
        path = [times[name] for name in ("read", "lookup and update", "dense", "all-reduce") if name in times]
        assert case["of_the_limit"] == pytest.approx(sum(path) / times["pipeline"])
    assert len(list(traces.iterdir())) == len(found)
    assert all(json.loads(trace.read_text())["traceEvents"] for trace in traces.iterdir())


@pytest.mark.slow
def test_reference(tmp_path: Path) -> None:
    sizes = ("--examples", 20_000, "--embedding-rows", 40_000, "--batch-size", 256, "--rounds", 1, "--steps", 1)
    results = run("reference.py", tmp_path / "out", *sizes, "--events", 20_000, "--epochs", 2, "--device", "cpu")
    assert len(results["speed_at_40000_rows"]) == 8
    assert all(clock > 0 for taken in results["speed_at_40000_rows"].values() for clock, _ in taken)
    aucs = {(line["trainer"], line["epoch"]): line["test_auc"] for line in results["quality"]}
    assert set(aucs) == {("plain", 1), ("plain", 2), ("recmtl", 1), ("recmtl", 2)}
    assert aucs["plain", 2]["view"] > 0.6
    assert aucs["recmtl", 2]["view"] > 0.6


@pytest.mark.slow
def test_table(tmp_path: Path) -> None:
    sizes = ("--events", 20_000, "--seeds", 1, "--overrides=--training.max_steps 3", "--work", tmp_path / "work")
    results = run("table.py", tmp_path / "out", "merrec", "--presets", "single_t*", *sizes)
    assert [row["label"] for row in results["rows"]] == ["single_task, only view", "single_task, only like"]
    assert all(list(row["runs"][0]["test"]) == [row["task"]] for row in results["rows"])
    [page] = (tmp_path / "out").glob("*.md")
    rows = [line.split("|")[1].strip() for line in page.read_text().splitlines() if line.startswith("|")]
    assert rows == ["model", "---", "oracle", "base rate", "single_task, only view", "single_task, only like"]


def test_published_rows_stand_beside_those_measured(tmp_path: Path) -> None:
    folds = [0.79, 0.80, 0.81]
    for preset, gains in {"merrec_aitm": (0.0, 0.0, 0.0), "merrec_mmoe": (0.01, 0.02, 0.03)}.items():
        aucs = [auc + gain for auc, gain in zip(folds, gains, strict=True)]
        task = {"auc": aucs[1], "auc_se": 0.002, "auc_folds": aucs, "logloss": 0.3}
        measured = {"test": {"view": task, "like": task}, "logloss_sum": 0.6, "best_epoch": 1, "epochs": 2}
        run_folder = tmp_path / "runs" / f"{preset}-100-0123abcd"
        run_folder.mkdir(parents=True)
        found = {"data_fingerprint": "same", "peak_memory_bytes": {"host": 10**9}}
        (run_folder / "results.json").write_text(json.dumps(measured | found))
    cases = {"merrec_aitm": 200.0, "merrec_mmoe": 50.0}
    steps = {"cases": [{"variant": name, "cpu_milliseconds": {"pipeline": ms}} for name, ms in cases.items()]}
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    given = ("--runs", tmp_path / "runs", "--steps", tmp_path / "steps.json")
    rows = {row["preset"]: row for row in run("published.py", tmp_path / "out", *given)["rows"]}
    assert len(rows) == 8
    assert rows["merrec_mmoe"]["step_ratio"] == 0.25
    gap = rows["merrec_mmoe"]["less_aitm"]["view"]
    assert gap["difference"] == pytest.approx(0.02)
    assert gap["error"] == pytest.approx((2 / 3 * 2 * 0.01**2) ** 0.5)
    assert rows["merrec_ple"]["less_aitm"] == {"view": None, "like": None}
    assert rows["merrec_stem"]["predicted_bytes"] > 2 * rows["merrec_mmoe"]["predicted_bytes"]
    [page] = (tmp_path / "out").glob("*.md")
    assert "| mmoe | 0.712 | 0.713 | 0.744 | 7.93 | 3.94 | 0.8200 ± 0.0020 | +0.0200 ± 0.0115 |" in page.read_text()


@pytest.mark.slow
def test_mmoe_correlation(tmp_path: Path) -> None:
    sizes = ("--seeds", 2, "--steps", 2, "--test-rows", 50, "--correlations", 1.0, 0.5)
    results = run("mmoe_correlation.py", tmp_path, *sizes)
    counts = results["parameters"].values()
    assert max(counts) < 1.01 * min(counts)
    assert set(results["losses"]) == {"shared_bottom", "omoe", "mmoe"}
    assert all(len(by_rate["0.001"]) == 2 for by_rate in results["losses"]["mmoe"].values())
    [figure] = tmp_path.glob("*.svg")
    assert "<svg" in figure.read_text()


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    sizes = ("--examples", 5_000, "--embedding-rows", 40_000, "--batch-size", 256, "--steps", 2, "--dim", 16)
    results = run("memory.py", tmp_path, "shared_bottom", *sizes, "--dtypes", "float32", "float16", "--device", "cpu")
    full, half = results["runs"]
    assert full["parts"]["weights"] == 2 * half["parts"]["weights"] == 40_000 * 16 * 4
    for found in (full, half):
        assert found["predicted"] == sum(found["parts"].values())
        assert found["measured"]["host"] > found["measured"]["bare"] + found["parts"]["weights"]


@pytest.mark.slow
def test_precision(tmp_path: Path) -> None:
    sizes = ("--events", 20_000, "--seeds", 1, "--overrides=--training.max_steps 3", "--work", tmp_path / "work")
    results = run("precision.py", tmp_path / "out", "shared_bottom", *sizes)
    assert set(results["runs"]) == {"float32", "float16"}
    losses = [found["shared_bottom"][0]["logloss_sum"] for found in results["runs"].values()]
    assert 0 < abs(losses[0] - losses[1]) < 1e-2


@pytest.mark.slow
def test_unseen(tmp_path: Path) -> None:
    sizes = ("--events", 5_000, "--seeds", 1, "--preset", "shared_bottom", "--work", tmp_path / "work")
    results = run("unseen.py", tmp_path / "out", "merrec_time", *sizes)
    variants = results["runs"]["merrec_time"]
    assert len(variants) == 5
    for [found] in variants.values():
        assert set(found) == {"all", "unseen"}
        tested = {rows: measured["test"]["view"]["rows"] for rows, measured in found.items()}
        assert 0 < tested["unseen"] < tested["all"]


@pytest.mark.slow
def test_cvr(tmp_path: Path) -> None:
    sizes = ("--impressions", 5_000, "--hidden", 0.5, "--seeds", 1, "--work", tmp_path / "work")
    results = run("cvr.py", tmp_path / "out", *sizes, "--overrides=--training.max_epochs 1")["results"]["0.5"]
    assert {name.split(",")[0] for name in results} == {"single_task", "mmoe", "esmm", "escm2"}
    for [found] in results.values():
        assert found["rows"] == 1_000 > found["clicks"] > 0
        assert 0 < found["auc"] < found["oracle_auc"] < 1
        # Clicks are where conversions are likely.
        assert found["mean_true"]["clicked"] > found["mean_true"]["all"]


@pytest.mark.slow
def test_predict_and_types_of_an_export(tmp_path: Path) -> None:
    work = tmp_path / "work"
    results = run("predict.py", tmp_path / "out", "--events", 5_000, "--work", work)
    commands = [results[name] for name in ("predict, run", "predict, export", "evaluate")]
    assert len({found["rows"] for found in commands}) == 1
    assert all(value > 0 for found in commands for value in found.values())

    results = run("export_dtypes.py", tmp_path / "dtypes", work / "run", work / "data")
    full, half, int8 = (results[dtype] for dtype in ("float32", "float16", "int8"))
    assert full["table_bytes"] > half["table_bytes"] > int8["table_bytes"] > 0
    for task, measured in full["test"].items():
        assert int8["test"][task]["logloss"] == pytest.approx(measured["logloss"], rel=1e-2)


@pytest.mark.slow
def test_export_delta(tmp_path: Path) -> None:
    results = run("export_delta.py", tmp_path, "--users", 300, "--items", 200, "--events", 50, "--bounded")
    for dtype in ("float32", "float16", "int8"):
        tables = results[dtype]["tables"]
        assert tables["item"]["rows"] == 202
        assert 0 < tables["user"]["changed"] < tables["user"]["rows"] / 2
        assert results[dtype]["delta"]["tables"] < results[dtype]["export"]["tables"]


def test_export_tables(tmp_path: Path) -> None:
    results = run("export_tables.py", tmp_path / "out", "--embedding-rows", 40_000, "--processes", 1, 2)
    for place in ("beside", "inside"):
        assert set(results[place]) == {"1", "2"}
        assert all(value > 0 for found in results[place].values() for value in found.values())


@pytest.mark.slow
def test_serving(tmp_path: Path) -> None:
    sizes = ("--embedding-rows", 40_000, "--seconds", 1, "--clients", 1, 3, "--workers", 1)
    lines = run("serving.py", tmp_path / "out", *sizes)["lines"]
    servers = ("recmtl, plain", "recmtl, tensors", "written first")
    assert [(line["server"], line["clients"]) for line in lines] == list(itertools.product(servers, (1, 3)))
    assert all(line["requests"] > 0 == line["failed"] for line in lines)
    for line in lines[:4]:
        assert 200 <= line["batch_rows"] <= 200 * line["clients"]
        assert all(milliseconds > 0 for milliseconds in line["stages_ms"].values())
        assert line["bare"]["requests_per_second"] > 0 < line["bare_with_encoding"]["cpu_ms"]


@pytest.mark.slow
def test_serving_under_load(tmp_path: Path) -> None:
    sizes = ("--minutes", 1, "--swap-seconds", 10, "--wrong", 0.1, "--embedding-rows", 40_000)
    results = run("serving_load.py", tmp_path / "out", *sizes)
    count = results["count"]
    assert count["right answers"] > 0 < count["wrong requests refused"]
    wrong = ("wrong answers", "failed good requests", "wrong requests not refused")
    assert results["mistakes"] == []
    assert not any(count.get(name) for name in (*wrong, "tries that met no server while the server ran"))
    assert results["swaps"] >= 3
    assert results["refused_exports"] == 1
    assert {line["start"] for line in results["memory"]} == {1, 2}


@pytest.mark.slow
def test_suite_of_a_gpu_runs_where_there_is_none(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(BENCHMARKS / "gpu.sh"), str(tmp_path)],
        env={
            **os.environ,
            "DEVICE": "cpu",
            "SIZE": "tiny",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    written = {path.name.split("-")[0] for path in tmp_path.glob("*.json")}
    assert written == {"throughput", "steps", "memory", "reference", "reader", "evaluation", "table"}
    lines = done.stdout.splitlines()
    table = next(number for number, line in enumerate(lines) if line.replace(" ", "").startswith("|target|"))
    header, _, rate, busy, step, *memory, seconds = lines[table:]
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["target", "measured", "wanted"]
    assert "2,000,000" in rate
    assert "no GPU" in busy
    assert "1.6" in step
    assert memory
    assert all("GB (at most)" in line and "no GPU" in line for line in memory)
    assert seconds.endswith("s in all")
