"""benchmarks/rolling.py: what it runs for which day, and its tables; the commands themselves are stood in for."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import rolling
import rolling_page
from usage import Usage

METRICS = {"oracle_auc": 0.8, "auc_se": 0.002, "logloss": 0.5, "rows": 1000}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every command writes its folder at once; yields the words after `recmtl` of those that were run."""
    done: list[list[str]] = []

    def run(*words: object) -> None:
        command = list(map(str, words))
        done.append(command)
        if command[0] == "synth":
            for day in range(20230501, 20230501 + int(command[command.index("--days") + 1])):
                for folder in (Path(command[2]) / str(day), Path(command[2]) / "truth" / str(day)):
                    folder.mkdir(parents=True)
                    (folder / "0.parquet").touch()
        elif command[0] == "prepare":
            out, day = Path(command[3]), Path(command[2]).name
            out.mkdir()
            tables = [{"name": "user_id", "rows": 10 * int(day)}]
            described = {"rows": {"train": 7}, "tables": tables, "data_fingerprint": str(out.parent.name) + out.name}
            (out / "dataset.json").write_text(json.dumps(described))
        elif command[0] == "train":
            (Path(command[command.index("--run") + 1])).mkdir()
        elif command[0] == "evaluate":
            data = Path(command[3])
            path = Path(command[1]) / "evaluations" / f"{data.parent.name}{data.name}-train.json"
            path.parent.mkdir(exist_ok=True)
            metrics = METRICS | {"auc": 0.7, "auc_folds": [0.7, 0.71]}
            path.write_text(json.dumps({"train": {"like": metrics}}))

    def usage(*words: object) -> Usage:
        assert words[:3] == (sys.executable, "-m", "recmtl")
        run(*words[3:])
        return Usage(1.0, 2.0, 3)

    monkeypatch.setattr(rolling, "usage", usage)
    monkeypatch.setattr(rolling, "in_process", run)
    return done


def words(commands: list[list[str]], name: str) -> list[str]:
    """Commands of one kind, with folders by their last two names."""
    return [
        " ".join("/".join(Path(word).parts[-2:]) if word.startswith("/") else word for word in command[1:])
        for command in commands
        if command[0] == name
    ]


def test_three_ways_over_three_days(tmp_path: Path, commands: list[list[str]]) -> None:
    options = rolling.Options("drift", days=4, events=10, work=tmp_path, out=tmp_path / "out")
    rolling.main(replace(options, until=1))
    assert len(words(commands, "train")) == 1, "all ways have the first day's model in common"
    rolling.main(options)
    recipe = f"{tmp_path.name}/grown.toml"
    assert sorted(words(commands, "prepare")) == sorted(
        [
            f"{recipe} raw/1 grown/1",
            *(f"{recipe} raw/{n} grown/{n} --extend grown/{n - 1} --lookback 1 day" for n in (2, 3, 4)),
            *(f"{recipe} raw/{n} anew/{n}" for n in (2, 3)),
            *(f"{recipe} raw/{n + 1} after/{n} --extend anew/{n}" for n in (2, 3)),
        ]
    )
    starts = [command for command in words(commands, "train") if "--start-from" in command]
    assert [command.split()[command.split().index("--run") + 1 :][0] for command in starts] == [
        "runs/continued",
        "runs/continued",
    ]
    assert "--start-from runs/grown first" in starts[0]
    assert "--start-from runs/continued 2" in starts[1]
    evaluated = words(commands, "evaluate")
    assert len(evaluated) == 9
    assert "runs/retrained 3 --data after/3 --split train" in evaluated
    assert "runs/grown first --data grown/4 --split train" in evaluated
    files = {path.suffix: path for path in (tmp_path / "out").iterdir()}
    assert set(files) == {".json", ".md", ".svg"}
    assert str(tmp_path) not in files[".json"].read_text() + files[".md"].read_text()
    count = len(commands)
    rolling.main(options)
    assert len(commands) == count, "a finished series is not made again"


def test_only_days_that_are_measured_are_retrained(tmp_path: Path, commands: list[list[str]]) -> None:
    options = rolling.Options("drift", days=12, events=10, measure=(4, 7), work=tmp_path, out=tmp_path / "out")
    rolling.main(options)
    runs = {Path(command[command.index("--run") + 1]).name for command in commands if command[0] == "train"}
    assert {f"continued {day}" for day in range(2, 8)} < runs
    assert {name for name in runs if "retrained" in name} == {f"retrained {day}" for day in (4, 7)}
    assert len(words(commands, "evaluate")) == 3 * 3


def test_a_step_that_was_stopped_begins_anew(tmp_path: Path, commands: list[list[str]]) -> None:
    series = rolling.Series(rolling.Options("drift", days=4, events=10), tmp_path)
    chain = series.ways[0].chain
    partial = tmp_path / chain.name / "1"
    (partial / "half").mkdir(parents=True)
    series.data(chain, 1)
    assert [path.name for path in partial.iterdir()] == ["dataset.json"]


def test_days_with_other_rows_are_refused(tmp_path: Path, commands: list[list[str]]) -> None:
    series = rolling.Series(rolling.Options("drift", days=4, events=10), tmp_path)
    way = series.ways[-1]
    series.data(way.chain, 3)
    described = json.loads((tmp_path / "grown" / "3" / "dataset.json").read_text())
    (tmp_path / "grown" / "3" / "dataset.json").write_text(json.dumps(described | {"rows": {"train": 8}}))
    with pytest.raises(SystemExit, match="day 3 has"):
        series.measure(way, 2)


def found(ways: dict[str, float]) -> rolling_page.Found:
    """Two days of each way, with a like AUC; the folds of all differ by the same amount."""
    used = {"cpu_seconds": 2.0, "peak_bytes": 3e6}

    def day(auc: float, scale: float) -> dict[str, Any]:
        folds = [auc + 0.001 * step for step in range(10)]
        steps = {"prepare": used, "train": used | {"cpu_seconds": 8 * scale}}
        sizes = {"data_bytes": 1e6 * scale, "run_bytes": 2e6, "table_rows": {"user_id": 10, "product": 20}}
        return {"tasks": {"like": METRICS | {"auc": auc, "auc_folds": folds}}, **steps, **sizes}

    return {name: {n: day(auc, 5 if name == "retrained" else 1) for n in (10, 11)} for name, auc in ways.items()}


def test_tables_of_three_ways() -> None:
    text = rolling_page.compare(found({"continued": 0.75, "retrained": 0.74}))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| 1")]
    assert lines[0] == [
        "10",
        "1,000",
        "0.8000",
        "0.7500 ± 0.0020",
        "0.7400 ± 0.0020",
        "+0.0100 ± 0.0000",
        *["0.5000"] * 2,
    ]
    assert lines[-1] == ["11", "2.0", "8.0", "2.0", "40.0", "0.24"]
    assert "like, mean of days 10, 11: continued − retrained +0.0100 ± 0.0000." in text


def test_tables_of_bounds() -> None:
    text = rolling_page.bounded(found({"unbounded": 0.75, "bounded": 0.75}))
    assert "bounded − unbounded +0.0000 ± 0.0000." in text
    assert text.splitlines()[-1] == "| 11 | 30 | 30 | 1 | 1 | 2 | 2 | 2 | 2 | 8 | 8 | 3 | 3 | 3 | 3 |"


def test_mean_of_days_has_the_error_of_independent_ones() -> None:
    both = found({"continued": 0.75, "retrained": 0.74})
    for day in (10, 11):
        both["continued"][day]["tasks"]["like"]["auc_folds"] = [0.74 + 0.002 * step for step in range(10)]
    _, one = rolling_page.change(both, "like", 10, "continued", "retrained")
    _, mean = rolling_page.mean_change(both, "like", [10, 11], "continued", "retrained")
    assert one > 0
    assert mean == pytest.approx(one / 2**0.5)


def test_bounds_belong_to_one_way() -> None:
    unbounded, bounded = rolling.ways(rolling.Options("bounded", expire=7, max_rows=600))
    assert (unbounded.chain.lookback, bounded.chain.lookback) == (None, "1 day")
    assert "max_rows" not in unbounded.chain.recipe
    assert bounded.chain.recipe.count("expire = 7") == 3


def test_variants_go_on_with_options_of_their_own() -> None:
    options = rolling.Options("drift", continued_overrides="--dense.lr 1", variants=("slow: --embedding.lr 0.02",))
    by_name = {way.name: way for way in rolling.ways(options)}
    assert list(by_name) == ["frozen", "continued", "slow", "retrained"]
    assert by_name["slow"].words == ("--dense.lr", "1", "--embedding.lr", "0.02")
