"""Tables of tasks' own, replicated or sharded: the same losses, and a run that changes from one to the other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy import write_toy

AN_EPOCH = 20
ALL = 2 * AN_EPOCH


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy(folder, {"train": 64 * AN_EPOCH, "val": 64, "test": 64})
    return folder


def train(run_recmtl, data: Path, run: Path, *options: object, ranks: int) -> list[float]:
    """Train stem, and return the loss of every step so far."""
    settings = {
        "training.batch_size": 64,
        "embedding.replica_gain_mib": 0,
        "training.max_epochs": 2,
        "training.patience": 0,
        "training.device": "cpu",
        "embedding.eps": 1e-5,
        "metrics.every_steps": 1,
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    ended = run_recmtl("train", "stem", "--data", data, "--run", run, *flags, *options, ranks=ranks)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def replicated(run: Path) -> set[str]:
    shards = json.loads((run / "plan.json").read_text())["shards"]
    return {shard["table"] for shard in shards if shard["sharding"] == "data_parallel"}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-4)])
def test_a_run_changes_placement_and_goes_on_as_if_it_had_not(run_recmtl, tmp_path, data, dtype, tolerance):
    """Sharded on one rank, all of tasks' own replicated on two, the smallest on two: against one run on one rank.

    Float16 tables differ where a weight lies between two neighbours; from float32 ones the losses differ by 4e-4.
    """
    chosen = ["--embedding.dtype", dtype]
    whole = train(run_recmtl, data, tmp_path / "whole", *chosen, ranks=1)
    assert len(whole) == ALL
    assert replicated(tmp_path / "whole") == set()

    run = tmp_path / "changing"
    stages = [
        (11, 1, ["--embedding.placement", "sharded"], set(), set()),
        (27, 2, ["--embedding.placement", "data_parallel"], {"user", "item", "tag"}, {"tag"}),
        (ALL, 2, [], {"tag"}, {"tag"}),
    ]
    for steps, ranks, options, own, shared in stages:
        losses = train(run_recmtl, data, run, *chosen, *options, "--training.max_steps", steps, ranks=ranks)
        assert len(losses) == steps
        wanted = {f"{table}@{task}" for table in own for task in ("click", "like")}
        assert replicated(run) == wanted | {f"{table}@shared" for table in shared}
    np.testing.assert_allclose(losses, whole, rtol=tolerance)
    if dtype == "float16":
        full = train(run_recmtl, data, tmp_path / "full", ranks=1)
        assert np.abs(np.array(full) / whole - 1).max() > 2e-4
    test = [json.loads((tmp_path / name / "results.json").read_text())["test"] for name in ("whole", "changing")]
    for task in ("click", "like"):
        assert test[0][task]["auc"] == pytest.approx(test[1][task]["auc"], abs=1e-4)
