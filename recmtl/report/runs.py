"""What the folder of a run holds: its results, or how far it came without any that hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recmtl.config import read_toml
from recmtl.errors import UserError
from recmtl.report.data import Data
from recmtl.runtime.storage import exists, list_folder, os_errors, read_json, read_text
from recmtl.schema import FILE_NAME, Dataset

RESULTS = "results.json"

Value = float | None
TaskMetrics = dict[str, Value]


@dataclass(frozen=True)
class Bins:
    """The calibration bins of one task, by rising prediction."""

    rows: list[float]
    prediction: list[float]
    """Mean of each bin."""
    label: list[float]
    """Mean of each bin; of a binary task the fraction of positives."""

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Bins:
        """Of ``results.json``. An earlier version wrote no mean labels, which were the fractions of positives.

        Raises:
            KeyError, TypeError, ValueError: something else stands there.
        """
        rows, prediction = [float(n) for n in fields["rows"]], [float(p) for p in fields["prediction"]]
        if "label" in fields:
            label = [float(mean) for mean in fields["label"]]
        else:
            label = [float(n) / of for n, of in zip(fields["positives"], rows, strict=True)]
        if not len(rows) == len(prediction) == len(label):
            raise ValueError("calibration bins of different lengths")
        return Bins(rows, prediction, label)


@dataclass(frozen=True)
class Segments:
    """The metrics by the values of one column."""

    tasks: dict[str, dict[str, TaskMetrics]]
    """By value, then by task."""
    left_out: int
    """Values that are not there."""
    left_out_rows: int
    """Their rows."""


@dataclass(frozen=True)
class Shard:
    """A piece of a table on one rank."""

    table: str
    sharding: str
    rank: int
    bytes: int
    """The planner's estimate: weights, optimiser state, inputs and outputs."""


@dataclass(frozen=True)
class Plan:
    """What ``plan.json`` says."""

    world_size: int
    memory: int
    """Bytes that a rank may fill."""
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Run:
    """What ``results.json`` of one run says, and the files beside it that are there."""

    folder: Path
    model: str
    dataset: str
    data_fingerprint: str
    steps: int
    """Steps that the run had made when it was measured."""
    start_from: str
    """The fingerprint of the data of the run that it started from; empty: it started from new weights."""
    world_size: int
    device: str
    seed: int
    epochs: Value
    test: dict[str, TaskMetrics]
    auc_folds: dict[str, list[Value]]
    """The test AUC without each fold of the rows, by task; no entry where it is unknown."""
    logloss_sum: Value
    train_val_seconds: Value
    examples_per_second: Value
    device_bytes: Value
    host_bytes: Value
    versions: dict[str, str]
    seconds: dict[str, Value]
    """Time by part."""
    bins: dict[str, Bins]
    """Of the test split, by task."""
    segments: dict[str, Segments]
    """Of the test split, by the column that metrics were asked for by."""
    config: dict[str, Any]
    """Empty without ``config.toml``."""
    config_text: str
    plan: Plan | None
    data: Data | None
    """What ``dataset.json`` says; None: it is missing."""
    history: list[dict[str, Any]]
    """The lines of ``metrics.jsonl``; empty without."""

    @property
    def test_rows(self) -> int:
        """Rows of the test split, with labels or without; 0: unknown."""
        if self.data is not None and "test" in self.data.rows:
            return self.data.rows["test"]
        return max((int(rows) for metrics in self.test.values() if (rows := metrics.get("rows"))), default=0)

    @staticmethod
    def load(folder: Path) -> Run:
        """Read a run folder.

        Raises:
            UserError: ``results.json`` is missing, or a file is damaged.
        """
        path, config = folder / RESULTS, folder / "config.toml"
        try:
            fields: dict[str, Any] = read_json(path)
            folds = {task: metrics.pop("auc_folds", None) for task, metrics in fields["test"].items()}
            return Run(
                folder=folder,
                model=str(fields["model"]),
                dataset=str(fields["dataset"]),
                data_fingerprint=str(fields["data_fingerprint"]),
                steps=int(fields["steps"]),
                start_from=str((fields.get("start_from") or {}).get("data_fingerprint", "")),
                world_size=int(fields["world_size"]),
                device=str(fields["device"]),
                seed=int(fields["seed"]),
                epochs=_number(fields["epochs"]),
                test={task: _numbers(metrics) for task, metrics in fields["test"].items()},
                auc_folds={task: [_number(v) for v in values] for task, values in folds.items() if values},
                logloss_sum=_number(fields["logloss_sum"]),
                train_val_seconds=_number(fields["train_val_seconds"]),
                examples_per_second=_number(fields["examples_per_second"]),
                device_bytes=_number(fields["peak_memory_bytes"]["device"]),
                host_bytes=_number(fields["peak_memory_bytes"]["host"]),
                versions={name: str(version) for name, version in fields["versions"].items()},
                seconds=_numbers(fields["seconds"]),
                bins={task: Bins.from_json(bins) for task, bins in fields["calibration_bins"]["test"].items()},
                segments={name: _segments(of) for name, of in fields.get("segments", {}).get("test", {}).items()},
                config=read_toml(config) if exists(config) else {},
                config_text=read_text(config) if exists(config) else "",
                plan=_plan(folder / "plan.json"),
                data=Data.load(folder / "dataset.json"),
                history=_history(folder / "metrics.jsonl"),
            )
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: damaged ({error!r}); remove it, then the same `recmtl train` command measures again"
            ) from None


@dataclass(frozen=True)
class RunWithoutResults:
    """A run that has no results, or none that hold."""

    folder: Path
    state: str
    """unfinished: it was not measured yet; outdated: it went on since; damaged: a file cannot be read."""
    step: int
    """Of its newest checkpoint; 0: none."""
    reason: str
    """One line that names the file, for the user."""
    model: str
    """Empty where the folder does not say; so is `dataset`."""
    dataset: str


def load_run(folder: Path) -> Run | RunWithoutResults:
    """Read a run folder, whatever state it is in.

    Raises:
        UserError: it is no run folder.
    """
    if not any(exists(folder / name) for name in (RESULTS, "config.toml", "checkpoints", ".lock")):
        raise UserError(f"{folder}: no run in it; name folders that `recmtl train` wrote")
    step = _newest_step(folder)
    if not exists(folder / RESULTS):
        reason = f"{folder}: unfinished at step {step}, without {RESULTS}; the same `recmtl train` command goes on"
        return _without_results(folder, "unfinished", step, reason)
    try:
        run = Run.load(folder)
    except UserError as error:
        return _without_results(folder, "damaged", step, str(error))
    if run.steps < step:
        reason = f"{folder}: outdated at step {step}, {RESULTS} is of step {run.steps}; let it finish"
        return _without_results(folder, "outdated", step, reason)
    return run


def _without_results(folder: Path, state: str, step: int, reason: str) -> RunWithoutResults:
    model = dataset = ""
    with suppress(UserError, AttributeError):
        model = str(read_toml(folder / "config.toml").get("model", {}).get("name", ""))
    with suppress(UserError):
        dataset = Dataset.load(folder).name if exists(folder / FILE_NAME) else ""
    return RunWithoutResults(folder, state, step, reason, model, dataset)


def _newest_step(folder: Path) -> int:
    """The step of the newest checkpoint; 0: there is none."""
    with os_errors(folder):
        names = [path.name.removeprefix("step-") for path in list_folder(folder / "checkpoints", "step-*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def is_number(task: str, runs: Iterable[Run]) -> bool:
    """Whether the labels of a task are numbers, not 0 and 1, as far as runs measured it."""
    return any("mae" in run.test.get(task, {}) for run in runs)


def metric(task: str, name: str) -> Callable[[Run], Value]:
    """A metric of the test split; of a run that has no such task, or where it is unknown, None."""
    return lambda run: run.test.get(task, {}).get(name)


def total_logloss(tasks: list[str]) -> Callable[[Run], Value]:
    """Log loss summed over binary tasks; of a run that lacks one of them None: its sum is another quantity."""
    return lambda run: run.logloss_sum if tasks and all(task in run.test for task in tasks) else None


def _segments(fields: dict[str, Any]) -> Segments:
    tasks = {
        str(segment["value"]): {task: _numbers(metrics) for task, metrics in segment["tasks"].items()}
        for segment in fields["values"]
    }
    return Segments(tasks, int(fields["left_out"]), int(fields["left_out_rows"]))


def _plan(path: Path) -> Plan | None:
    if not exists(path):
        return None
    try:
        fields = read_json(path)
        shards = [Shard(s["table"], s["sharding"], int(s["rank"]), int(s["total_bytes"])) for s in fields["shards"]]
        return Plan(int(fields["cluster"]["world_size"]), int(fields["cluster"]["memory"]), tuple(shards))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); remove it or train again") from None


def _history(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that a crash cut off is left out."""
    lines = []
    for text in read_text(path, errors="replace").splitlines() if exists(path) else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _numbers(values: dict[str, Any]) -> dict[str, Value]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: Any) -> Value:
    """A finite number; null, NaN and infinities are unknown."""
    return float(value) if value is not None and math.isfinite(value) else None
