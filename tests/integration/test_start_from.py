"""Runs that start from another one: what is carried over is equal bit for bit, what is new begins anew."""

from __future__ import annotations

import math
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from grown import REUSED, write_grown
from jobs import last_step, running, standalone, training, weights, words
from runs import read, steps, train_here
from started import begin, begin_on_two_ranks, tensors
from toy import write_toy

from recmtl import cli
from recmtl.errors import UserError
from recmtl.runtime.storage import read_json
from recmtl.schema import Dataset
from recmtl.training.checkpoint_folder import best_checkpoint

ROWS = {"train": 640, "val": 100, "test": 100}
SHORT = {"training__max_steps": 6, "metrics__tensorboard": False, "model__expert_widths": 8, "model__dropout": 0.1}
LATER = {"user": sorted({*REUSED["user"], *range(50, 60)}), "item": sorted({*REUSED["item"], *range(200, 230)})}
FIRST_ROWS = {"user": 50, "item": 200}
TABLE = "model.model.embeddings.collection.embedding_bags.{}.weight"
STATE = "optimizer.state.embedding.model.embeddings.collection.embedding_bags.{0}.weight.{0}.momentum1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of three generations, and a run on the first."""
    folder = tmp_path_factory.mktemp("start")
    write_toy(folder / "data", ROWS)
    write_grown(folder / "later", folder / "data", rows=ROWS)
    write_grown(folder / "latest", folder / "later", rows=ROWS, table_rows=(60, 240), reused={"user": [9]}, seed=2)
    train_here(folder / "data", folder / "yesterday", **SHORT)
    stranger = write_grown(folder / "stranger", folder / "data", rows=ROWS, table_rows=(70, 230))
    replace(stranger, lineage=()).save(folder / "stranger")
    for name in ("damaged", "empty"):
        shutil.copytree(folder / "yesterday", folder / name)
    (best_checkpoint(folder / "damaged") / "__0_0.distcp").unlink()
    shutil.rmtree(folder / "empty" / "checkpoints")
    return folder


@pytest.fixture(scope="module")
def started(folder: Path) -> dict[str, torch.Tensor]:
    """What the next run begins with, on one rank."""
    begin(folder / "later", folder / "yesterday", folder / "today")
    return tensors(folder / "today")


def drawn(table: str, ids: list[int], dim: int = 16, seed: int = 100) -> torch.Tensor:
    """The initial rows of some ids below 65,536 by the formula: uniform in ±1/√(rows of the first generation)."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{table}/0".encode()))
    bound = 1 / math.sqrt(FIRST_ROWS[table])
    return torch.rand(1000, dim, generator=generator)[ids] * (2 * bound) - bound


def assert_carried_over(before: dict[str, torch.Tensor], now: dict[str, torch.Tensor]) -> None:
    """Everything is what it was, but later rows are as drawn and have no state."""
    assert before.keys() == now.keys()
    for table, later in LATER.items():
        name, state = TABLE.format(table), STATE.format(table)
        old = [row for row in range(FIRST_ROWS[table]) if row not in later]
        torch.testing.assert_close(now[name][later], drawn(table, later), rtol=0, atol=1e-8)
        assert now[state][later].count_nonzero() == 0
        for key in (name, state):
            assert torch.equal(now[key][old], before[key][old])
        assert before[state][old].count_nonzero() > 0
    grown = {pattern.format(table) for table in LATER for pattern in (TABLE, STATE)}
    for name in before.keys() - grown:
        assert torch.equal(now[name], before[name]), name


def test_one_rank(folder: Path, started: dict[str, torch.Tensor]) -> None:
    assert_carried_over(tensors(folder / "yesterday"), started)
    described = read_json(best_checkpoint(folder / "today") / "train_state.json")
    assert described["step"] == described["epoch"] == 0
    assert described["first_rows"] == {"user": 50, "item": 200, "tag": 20}
    fingerprint = Dataset.load(folder / "data").data_fingerprint
    assert described["start_from"] == {"run": "yesterday", "data_fingerprint": fingerprint, "step": 6}


def test_two_ranks_with_another_plan(folder: Path, started: dict[str, torch.Tensor], tmp_path: Path) -> None:
    begin_on_two_ranks(folder / "later", folder / "yesterday", tmp_path / "run")
    places = {shard["table"]: shard["rank"] for shard in read(tmp_path / "run", "plan.json")["shards"]}
    assert set(places.values()) == {0, 1}
    found = tensors(tmp_path / "run")
    assert found.keys() == started.keys()
    assert all(torch.equal(found[name], started[name]) for name in started)


@pytest.mark.slow
@pytest.mark.parametrize("new_rows", ["drawn", "unseen"])
def test_tables_that_every_rank_holds(folder: Path, tmp_path: Path, new_rows: str) -> None:
    """Copies of tables of a task's own, sharded before and replicated now: the bits are those of one rank."""
    train_here(folder / "data", tmp_path / "stem", preset="stem", training__max_steps=6, metrics__tensorboard=False)
    embedding = {"new_rows": new_rows, "placement": "data_parallel"}
    for run, start in ((tmp_path / "one", begin), (tmp_path / "two", begin_on_two_ranks)):
        start(folder / "later", tmp_path / "stem", run, embedding=embedding)
    kinds = {shard["table"]: shard["sharding"] for shard in read(tmp_path / "two", "plan.json")["shards"]}
    assert kinds["item@click"] == "data_parallel"
    before, one, two = (tensors(tmp_path / name) for name in ("stem", "one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    weight, state = (pattern.format("item@click") for pattern in (TABLE, STATE))
    old = [row for row in range(200) if row not in LATER["item"]]
    assert torch.equal(two[weight][old], before[weight][old])
    assert torch.equal(two[state][old], before[state][old])
    assert two[state][LATER["item"]].count_nonzero() == 0
    expected = two[weight][1].expand(len(LATER["item"]), -1)
    if new_rows == "drawn":
        generator = torch.Generator().manual_seed(zlib.crc32(b"100/item@click/0"))
        expected = ((torch.rand(230, 16, generator=generator) * 2 - 1) / math.sqrt(200))[LATER["item"]]
    torch.testing.assert_close(two[weight][LATER["item"]], expected, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_columns_in_pieces(folder: Path, run_recmtl: Any, tmp_path: Path) -> None:
    """Row-wise state is that of one piece of columns after the other, and each begins elsewhere in a larger table."""
    flags = {"training.max_steps": 6, "training.batch_size": 64, "training.device": "cpu"}
    cut = ("--sharding.tables", "item", "column_wise")
    place = ("--data", folder / "data", "--run", tmp_path / "cut")
    ended = run_recmtl("train", "mmoe", *place, *words(flags), *cut, ranks=2)
    assert ended.returncode == 0, ended.stderr
    begin_on_two_ranks(folder / "later", tmp_path / "cut", tmp_path / "run")
    before, now = (tensors(tmp_path / name) for name in ("cut", "run"))
    state = STATE.format("item")
    assert (before[state].shape, now[state].shape) == ((400,), (460,))
    for tensors_of in (before, now):  # the two numbers of a row beside each other, as for a table that is whole
        tensors_of[state] = tensors_of[state].unflatten(0, (2, -1)).T.contiguous()
    assert_carried_over(before, now)
    with pytest.raises(UserError, match="'item' were cut into pieces of 8, now of 16, and rowwise_adagrad keeps"):
        begin(folder / "later", tmp_path / "cut", tmp_path / "whole")


def test_the_scale_of_new_rows_is_that_of_the_first_generation(
    folder: Path, started: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    begin(folder / "latest", folder / "today", tmp_path / "run")
    now = tensors(tmp_path / "run")
    new = list(range(230, 240))
    item, user = TABLE.format("item"), TABLE.format("user")
    torch.testing.assert_close(now[item][new], drawn("item", new), rtol=0, atol=1e-8)
    assert torch.equal(now[item][:230], started[item])
    torch.testing.assert_close(now[user][[9]], drawn("user", [9]), rtol=0, atol=1e-8)
    kept = [row for row in range(60) if row != 9]
    assert torch.equal(now[user][kept], started[user][kept])


def test_new_rows_may_start_from_the_unseen_one(folder: Path, started: dict[str, torch.Tensor], tmp_path: Path) -> None:
    begin(folder / "later", folder / "yesterday", tmp_path / "run", embedding={"new_rows": "unseen"})
    found = tensors(tmp_path / "run")
    for table, later in LATER.items():
        weight = found[TABLE.format(table)]
        assert torch.equal(weight[later], weight[1].expand(len(later), -1))
        assert found[STATE.format(table)][later].count_nonzero() == 0
    tables = {TABLE.format(table) for table in LATER}
    assert all(torch.equal(found[name], started[name]) for name in started if name not in tables)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_started_again(folder: Path, tmp_path: Path, ranks: int) -> None:
    """The same command goes on, without the other run; the end has the bits of a run that was left alone."""
    flags = {"checkpoint__every_steps": 3, "training__max_epochs": 4, "model__expert_widths": 8}
    launcher = standalone(ranks) if ranks > 1 else None
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    command = [*training(folder / "later", killed, **flags), "--start-from", folder / "yesterday"]
    with running(*command, launcher=launcher) as job:
        job.wait_for(lambda: last_step(killed) >= 8)
        job.kill()
    assert list((killed / "checkpoints").glob("step-*"))
    assert not (killed / "results.json").exists()
    (folder / "yesterday").rename(folder / "elsewhere")
    try:
        with running(*command, launcher=launcher) as job:
            assert job.end() == 0, job.stderr
    finally:
        (folder / "elsewhere").rename(folder / "yesterday")
    with running(*[alone if word == killed else word for word in command], launcher=launcher) as job:
        assert job.end() == 0, job.stderr
    assert steps(killed)[-1] == steps(alone)[-1] == 40
    ends = [weights(run / "checkpoints" / "step-000000040") for run in (killed, alone)]
    assert ends[0] == ends[1]
    for key in ("test", "val", "steps", "best_epoch", "start_from"):
        assert read(killed)[key] == read(alone)[key]
    assert read(alone)["start_from"]["run"] == "yesterday"
    assert read(folder / "yesterday")["start_from"] is None


def test_yesterdays_model_goes_on_where_it_stood(folder: Path, tmp_path: Path) -> None:
    """With no step that moves anything, it is the model that `recmtl evaluate` measures on the same rows."""
    cli.evaluate([str(folder / "yesterday"), "--data", str(folder / "data")])
    still = {"training__max_steps": 1, "dense__lr": 1e-30, "embedding__lr": 1e-30}
    results = train_here(folder / "data", tmp_path / "run", **SHORT | still, start_from=folder / "yesterday")
    [measured] = (folder / "yesterday" / "evaluations").glob("*-test.json")
    found, expected = (values["test"]["click"]["auc"] for values in (results, read_json(measured)))
    assert found == pytest.approx(expected, abs=1e-9)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no such run": ({"start_from": "nowhere"}, "nowhere: no config.toml in it; name a run folder"),
    "another data": (
        {"data": "stranger"},
        "stranger: encoded otherwise than what .*yesterday was trained on: .*rows 50, now 70",
    ),
    "other sizes": (
        {"model__experts": 3},
        "yesterday/config.toml: the run has model.experts 4, not 3; start with that",
    ),
    "another optimiser": (
        {"embedding__optimizer": "adagrad"},
        "the run has embedding.optimizer rowwise_adagrad, not ada",
    ),
    "fewer tasks": ({"tasks": ("like",)}, "training.tasks: .*yesterday was trained on click, like; train these first"),
    "a damaged run": ({"start_from": "damaged"}, "step-000000006: damaged .__0_0.distcp is missing"),
    "a run without checkpoints": ({"start_from": "empty"}, "empty: no checkpoint in it; train the run first"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(folder: Path, tmp_path: Path, name: str) -> None:
    changes, message = MISTAKES[name]
    changes = {"data": "later", "start_from": "yesterday", **changes}
    data, before = folder / changes.pop("data"), folder / changes.pop("start_from")
    with pytest.raises(UserError, match=message) as caught:
        train_here(data, tmp_path / "deep" / "run", start_from=before, **SHORT | changes)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_started_otherwise(folder: Path, tmp_path: Path) -> None:
    train_here(folder / "later", tmp_path / "run", start_from=folder / "yesterday", **SHORT)
    for run, start, message in (
        (
            tmp_path / "run",
            folder / "today",
            "run started from yesterday; leave it out to go on, or name another --run",
        ),
        (folder / "yesterday", folder / "today", "yesterday started from new weights; leave it out"),
    ):
        data = folder / ("later" if run.name == "run" else "data")
        with pytest.raises(UserError, match=message):
            train_here(data, run, start_from=start, **SHORT)
    # Without the option the run is what it is, and finished.
    assert train_here(folder / "later", tmp_path / "run", **SHORT)["start_from"]["run"] == "yesterday"


RECIPE = """
name = "shop"
sql = "select * from raw"
[[table]]
name = "user"
expire = 1
[[feature]]
name = "user"
[[feature]]
name = "item"
[[task]]
name = "click"
label = "clicked"
[split]
by = "time"
column = "at"
val = 0.1
test = 0.1
"""


def test_a_day_after_the_other_by_the_commands(tmp_path: Path) -> None:
    """Every day has users and items of its own; the ids of users that stay away go to those that come."""
    (tmp_path / "shop.toml").write_text(RECIPE)
    (tmp_path / "raw").mkdir()
    rng, place, runs = np.random.default_rng(0), tmp_path / "raw", []
    for day in range(4):
        users, items = rng.integers(10 * day, 10 * day + 20, 500), rng.integers(0, 20 + 5 * day, 500)
        columns = {"at": 1000 * day + np.arange(500), "user": users, "item": items, "clicked": (users + items) % 3 == 0}
        pq.write_table(pa.table(columns), place / f"{day}.parquet")
        data = tmp_path / f"data{day}"
        extend = ["--extend", str(tmp_path / f"data{day - 1}"), "--val", "0.1", "--test", "0.1"] if day else []
        cli.prepare([str(tmp_path / "shop.toml"), str(place), str(data), *extend])
        before = {"start_from": runs[-1]} if runs else {}
        if runs:
            cli.evaluate([str(runs[-1]), "--data", str(data), "--split", "all"])
        runs.append(tmp_path / f"run{day}")
        train_here(data, runs[-1], training__max_steps=20, metrics__tensorboard=False, **before)
    assert [Dataset.load(tmp_path / f"data{day}").generation for day in range(4)] == [0, 1, 2, 3]
    assert Dataset.load(tmp_path / "data3").table("user").rows < 2 + 50
    assert [(read(run)["start_from"] or {}).get("run") for run in runs] == [None, "run0", "run1", "run2"]
    described = read_json(best_checkpoint(runs[3]) / "train_state.json")
    assert described["first_rows"] == {table.name: table.rows for table in Dataset.load(tmp_path / "data0").tables}
    assert len(list((runs[0] / "evaluations").iterdir())) == 3
    cli.export([str(runs[3]), str(tmp_path / "export")])
