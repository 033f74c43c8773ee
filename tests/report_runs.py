"""Run folders as `recmtl train` leaves them, without training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from recmtl.metrics.jackknife import FOLDS, standard_error

CONFIG = "[model]\nname = {model}\nexperts = {experts}\n\n[training]\nseed = {seed}\ntasks = []\n"
STEPS = 400
BINS = {"rows": [500, 500], "prediction": [0.05, 0.2], "positives": [25, 100]}


def task(auc: float | None, **changes: Any) -> dict[str, Any]:
    """The metrics of one task."""
    metrics = {"auc": auc, "oracle_auc": None, "gauc": None, "logloss": 0.4, "ne": 0.9, "calibration": 1.0}
    return {**metrics, "base_rate": 0.125, "rows": 1000, **changes}


def number_task(mae: float | None, **changes: Any) -> dict[str, Any]:
    """The metrics of a task whose labels are numbers; their deviation is 20."""
    metrics = {"loss": 0.7, "mae": mae, "mae_se": 0.25, "rmse": 16.0, "rmse_se": 0.5, "r2": 0.36, "r2_se": 0.01}
    return {**metrics, "xauc": 0.71, "bias": 1.02, "mean_label": 25.5, "rows": 600, **changes}


def folds(auc: float, *spreads: float) -> dict[str, Any]:
    """`auc` without each of the folds, moved by `spreads` in turn, and its standard error."""
    without = [auc + spreads[fold % len(spreads)] for fold in range(FOLDS)]
    return {"auc_folds": without, "auc_se": standard_error(without)}


def dataset(**changes: Any) -> dict[str, Any]:
    """``dataset.json`` as far as a report reads it."""
    rates = {"train": 0.1, "val": 0.12, "test": 0.125}
    features = [
        {"name": "item", "kind": "categorical", "table": "item"},
        {"name": "price", "kind": "numeric", "table": None},
    ]
    fields = {
        "rows": {"train": 8000, "val": 1000, "test": 1000},
        "tasks": [{"name": "view", "base_rate": rates}, {"name": "like", "base_rate": rates}],
        "tables": [{"name": "item", "rows": 5000, "dim": None}, {"name": "user", "rows": 90_000, "dim": 8}],
    }
    return {**fields, "features": features, **changes}


def results(model: str = "mmoe", **changes: Any) -> dict[str, Any]:
    """``results.json`` of a run, without calibration bins and times by part."""
    fields = {"model": model, "dataset": "merrec", "world_size": 2, "device": "cpu", "seed": 100, "epochs": 3}
    fields |= {"data_fingerprint": "3f2a91bc" * 4, "encoding_fingerprint": "0" * 32, "steps": STEPS}
    fields |= {"calibration_bins": {"test": {}, "val": {}}, "seconds": {}}
    fields |= {"best_epoch": 2, "test": {"view": task(0.77), "like": task(0.73)}, "val": {}, "logloss_sum": 0.8}
    fields |= {"train_val_seconds": 90.0, "examples_per_second": 85_123.4, "versions": {}, "config_sha256": "0"}
    return {**fields, "peak_memory_bytes": {"device": None, "host": 1.5e9}, **changes}


def write_results(folder: Path, **changes: Any) -> Path:
    """A run folder with nothing but ``results.json``."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results(**changes)))
    return folder


def write_run(folder: Path, *, experts: int = 4, more: str = "", **changes: Any) -> Path:
    """A run folder with everything that a report shows; `more` is added to its configuration."""
    seconds = {"train": 80.0, "data_wait": 8.0, "validation": 10.0, "checkpoint": 5.0, "test": 5.0}
    bins = {"test": {"view": BINS, "like": BINS}, "val": {}}
    versions = {"python": "3.11.7", "torch": "2.13.0"}
    changes = {"seconds": seconds, "calibration_bins": bins, "versions": versions, **changes}
    write_results(folder, **changes)
    fields = results(**changes)
    config = CONFIG.format(model=json.dumps(fields["model"]), experts=experts, seed=fields["seed"]) + more
    (folder / "config.toml").write_text(config)
    (folder / "dataset.json").write_text(json.dumps(dataset()))
    shards = [
        {"table": table, "sharding": "table_wise", "rank": rank, "total_bytes": size}
        for rank, table, size in ((0, "user", 4000), (1, "item", 3000), (1, "<b>color</b>", 1000))
    ]
    plan = {"cluster": {"world_size": 2, "memory": 16_000}, "shards": shards}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history()))
    return folder


def history() -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``: 40 of training, 2 of validation."""
    lines: list[dict[str, Any]] = []
    for step in range(10, 410, 10):
        loss = 0.4 + math.exp(-step / 50)
        lines.append({"step": step, "epoch": 1 + step // 201, "loss/view": loss, "loss/like": loss / 2})
        if step % 200 == 0:
            val = {f"val/{name}/{key}": 0.5 + step / 4000 for name in ("view", "like") for key in ("auc", "logloss")}
            lines.append({"step": step, "epoch": step // 200, "val/loss": 1.0, **val})
    return lines
