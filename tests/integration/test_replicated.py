"""Tables that `auto` replicates: fewer bytes, the same losses on any number of ranks, runs that change their plan."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import trained
from exchanged import exchanged
from jobs import words
from runs import evaluation, losses, train_here
from started import begin, begin_on_two_ranks, tensors
from toy import write_toy

from recmtl.config import MODELS

DIM = 16
ROWS = {"user": 50, "item": 200, "tag": 20}
BATCH, STEPS = 128, 20
FLAGS = {
    "training.batch_size": BATCH,
    "training.max_epochs": 1,
    "training.device": "cpu",
    # With the default of 1e-8 Adagrad's first step on a row is ±lr even where its gradient is rounding noise.
    "embedding.eps": 1e-5,
    "embedding.replica_gain_mib": 0,
    "metrics.every_steps": 1,
    "metrics.tensorboard": False,
}
OPTIONS = {"single_task": ("--training.tasks", "click")}
"""What a model needs besides its preset."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy folder; a like now has a parent, for the models that ask for an order."""
    folder = tmp_path_factory.mktemp("toy") / "data"
    dataset = write_toy(folder, {"train": BATCH * STEPS, "val": 100, "test": 100})
    click, like = dataset.tasks
    replace(dataset, tasks=(click, replace(like, parent="click", relation="given_not"))).save(folder)
    return folder


@pytest.fixture
def train(run_recmtl, data: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, ranks: int, preset: str = "mmoe", **flags: Any) -> Path:
        settings = FLAGS | {key.replace("__", "."): value for key, value in flags.items()}
        place = ("--data", data, "--run", tmp_path / name)
        ended = run_recmtl("train", preset, *place, *words(settings), *OPTIONS.get(preset, ()), ranks=ranks)
        assert ended.returncode == 0, ended.stderr
        assert "Warning" not in ended.stderr
        return tmp_path / name

    return run


def replicated(run: Path) -> set[str]:
    shards = json.loads((run / "plan.json").read_text())["shards"]
    return {shard["table"] for shard in shards if shard["sharding"] == "data_parallel"}


@pytest.mark.parametrize(
    ("batch_size", "tables"),
    [
        (128, {"tag", "user"}),
        pytest.param(64, {"tag"}, marks=pytest.mark.slow),
        pytest.param(256, {"tag", "user", "item"}, marks=pytest.mark.slow),
    ],
)
def test_a_step_exchanges_as_many_bytes_less_as_planned(data, batch_size, tables):
    """All numbers are of four bytes. On two ranks an all-to-all sends half of what it gets, an all-reduce all of it."""
    before, after = (exchanged(data, batch_size, placement) for placement in ("sharded", "auto"))
    assert (before["tables"], set(after["tables"])) == ([], tables)
    added = after["all_reduce"] - before["all_reduce"]
    assert added == 2 * DIM * sum(ROWS[table] for table in tables)
    saved = before["all_to_all"] - after["all_to_all"]
    features = len(tables) + ("item" in tables)
    embeddings_and_lengths = batch_size * features * (2 * DIM + 1)
    ids_at_least = batch_size * (features - 1)  # a row has no tag or several
    assert embeddings_and_lengths + ids_at_least < saved < embeddings_and_lengths + ids_at_least + 3 * batch_size
    assert saved / 2 > added
    assert (after["all_to_all"] == 0) == (tables == set(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("preset", MODELS)
def test_any_number_of_ranks_trains_alike(train, preset):
    """None of the tables is replicated on one rank, some are on two, one on four."""
    runs = {ranks: train(f"{ranks}", ranks, preset) for ranks in (1, 2, 4)}
    for ranks, tables in ((1, set()), (2, {"user", "tag"}), (4, {"tag"})):
        assert {table.split("@")[0] for table in replicated(runs[ranks])} == tables
        assert len(losses(runs[ranks])) == STEPS
        assert losses(runs[ranks]) == pytest.approx(losses(runs[1]), rel=1e-4)


@pytest.mark.slow
def test_the_same_bits_every_time(train):
    one, other = (tensors(train(name, 2)) for name in ("one", "other"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_run_goes_on_with_other_tables_replicated(train):
    """None on one rank, all on two with a wider batch of each, then some on two, none on two."""
    whole = train("whole", 1)
    stages = [
        (4, 1, {}, set()),
        (8, 2, {}, {"user", "tag"}),
        (12, 4, {}, {"tag"}),
        (16, 2, {"embedding__replica_mib": 0.003}, {"tag"}),
        (STEPS, 2, {"embedding__placement": "sharded"}, set()),
    ]
    for steps, ranks, flags, tables in stages:
        run = train("changing", ranks, training__max_steps=steps, **flags)
        assert replicated(run) == tables
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.slow
def test_a_run_starts_from_one_with_another_plan(train, data, tmp_path):
    """What lay on one of two ranks lies on both, and the other way round: bit for bit."""
    before = train("before", 2)
    assert replicated(before) == {"user", "tag"}
    begin(data, before, tmp_path / "one")
    begin_on_two_ranks(data, before, tmp_path / "sharded", embedding={"placement": "sharded"})
    begin_on_two_ranks(data, tmp_path / "sharded", tmp_path / "again", embedding={"placement": "auto"})
    assert [replicated(tmp_path / name) for name in ("one", "sharded", "again")] == [set(), set(), {"user", "tag"}]
    expected = tensors(before)
    for name in ("one", "sharded", "again"):
        found = tensors(tmp_path / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.slow
def test_measuring_and_scoring_on_two_ranks(run_recmtl, tmp_path):
    """Replicas are filled from a checkpoint as shards are, and need no gradients."""
    folder = trained.write_data(tmp_path)
    run = trained.train(folder, tmp_path / "run", "mmoe", embedding__replica_gain_mib=0)
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"predictions-{ranks}"
        for words_of in (
            ("predict", run, tmp_path / "raw", out, "--keep", "number"),
            ("evaluate", run, "--data", folder),
        ):
            ended = run_recmtl(*words_of, ranks=ranks)
            assert ended.returncode == 0, ended.stderr
        scores = pq.read_table(out).sort_by("number")
        measured = json.loads((run / evaluation(folder, "test")).read_text())
        found.append([*scores["p_click"].to_pylist(), *scores["p_like"].to_pylist(), measured["logloss_sum"]])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_rows_without_a_gradient_stay_where_eps_is_0(data, tmp_path, optimizer):
    """A dense optimiser divides the gradient of every row by the root of its state: 0 by 0 in rows never met."""
    kinds = {"embedding__eps": 0, "embedding__optimizer": optimizer, "sharding__type": "data_parallel"}
    train_here(data, tmp_path / "run", training__max_steps=1, training__batch_size=16, **kinds)
    met = {id for path in sorted((data / "train").iterdir()) for id in pq.read_table(path)["user"].to_pylist()}
    assert len(met) == ROWS["user"]
    found = tensors(tmp_path / "run")
    state = next(value for name, value in found.items() if name.endswith("user.momentum1"))
    assert math.isfinite(sum(value.double().sum().item() for value in found.values()))
    assert (state == 0).any()
