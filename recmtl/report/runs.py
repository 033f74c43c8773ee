"""What the folder of a run holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recmtl.config import read_toml
from recmtl.errors import UserError

Value = float | None
TaskMetrics = dict[str, Value]


@dataclass(frozen=True)
class Bins:
    """The calibration bins of one task, by rising prediction."""

    rows: list[float]
    prediction: list[float]
    """Mean of each bin."""
    positives: list[float]


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
    world_size: int
    device: str
    seed: int
    epochs: Value
    test: dict[str, TaskMetrics]
    logloss_sum: Value
    train_val_seconds: Value
    examples_per_second: Value
    device_bytes: Value
    host_bytes: Value
    versions: dict[str, str]
    seconds: dict[str, Value]
    """Time by part; empty in runs of old."""
    bins: dict[str, Bins]
    """Of the test split, by task; empty in runs of old."""
    config: dict[str, Any]
    """Empty without ``config.toml``."""
    config_text: str
    plan: Plan | None
    history: list[dict[str, Any]]
    """The lines of ``metrics.jsonl``; empty without."""

    @property
    def test_rows(self) -> int:
        """Rows of the test split; 0: unknown."""
        return max((int(rows) for metrics in self.test.values() if (rows := metrics.get("rows"))), default=0)

    @staticmethod
    def load(folder: Path) -> Run:
        """Read a run folder.

        Raises:
            UserError: ``results.json`` is missing, or a file is damaged.
        """
        path, config = folder / "results.json", folder / "config.toml"
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            return Run(
                folder=folder,
                model=str(fields["model"]),
                dataset=str(fields["dataset"]),
                world_size=int(fields["world_size"]),
                device=str(fields["device"]),
                seed=int(fields["seed"]),
                epochs=_number(fields["epochs"]),
                test={task: _numbers(metrics) for task, metrics in fields["test"].items()},
                logloss_sum=_number(fields["logloss_sum"]),
                train_val_seconds=_number(fields["train_val_seconds"]),
                examples_per_second=_number(fields["examples_per_second"]),
                device_bytes=_number(fields["peak_memory_bytes"]["device"]),
                host_bytes=_number(fields["peak_memory_bytes"]["host"]),
                versions={name: str(version) for name, version in fields["versions"].items()},
                seconds=_numbers(fields.get("seconds", {})),
                bins={task: Bins(**bins) for task, bins in fields.get("calibration_bins", {}).get("test", {}).items()},
                config=read_toml(config) if config.exists() else {},
                config_text=config.read_text(encoding="utf-8") if config.exists() else "",
                plan=_plan(folder / "plan.json"),
                history=_history(folder / "metrics.jsonl"),
            )
        except OSError as problem:
            raise UserError(f"{path}: cannot be read ({problem.strerror}); name folders of finished runs") from None
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UserError(f"{path}: damaged ({problem!r}); train or evaluate again") from None


def metric(task: str, name: str) -> Callable[[Run], Value]:
    """A metric of the test split; of a run that has no such task, or where it is unknown, None."""
    return lambda run: run.test.get(task, {}).get(name)


def total_logloss(tasks: list[str]) -> Callable[[Run], Value]:
    """Log loss summed over tasks; of a run that lacks one of them None: its sum is another quantity."""
    return lambda run: run.logloss_sum if all(task in run.test for task in tasks) else None


def _plan(path: Path) -> Plan | None:
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text())
        shards = [Shard(s["table"], s["sharding"], int(s["rank"]), int(s["total_bytes"])) for s in fields["shards"]]
        return Plan(int(fields["cluster"]["world_size"]), int(fields["cluster"]["memory"]), tuple(shards))
    except (ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path}: damaged ({problem!r}); remove it or train again") from None


def _history(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that a crash cut off is left out."""
    lines = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
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
