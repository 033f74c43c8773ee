"""Histories from raw rows to predictions: training, resuming, growth, exports, new rows, requests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from grown import REUSED, write_grown
from histories import FEATURE_COLUMNS, write_data
from jobs import weights, words
from runs import FLAGS, losses, read, steps, train_here
from serving import as_json, infer_body, serving
from started import begin, tensors
from toy import write_toy

import recmtl
from recmtl import cli
from recmtl.errors import UserError
from recmtl.inference import inputs
from recmtl.models.sequences import ENCODERS
from recmtl.schema import Feature
from recmtl.training.scorer import RunScorer

SHORT: dict[str, Any] = {
    "training__max_epochs": 1,
    "training__warmup_steps": 0,
    "metrics__tensorboard": False,
    "embedding__dim": 8,
}
TRANSFORMER = SHORT | {"sequence__encoder": "transformer"}
TASKS = ("click", "like")
POOLED = "model.model.embeddings.collection.embedding_bags.item.weight"
UNPOOLED = "model.model.embeddings.unpooled.16.embeddings.item.weight"
POOLED_STATE = "optimizer.state.embedding.model.embeddings.collection.embedding_bags.item.weight.item.momentum1"
UNPOOLED_STATE = "optimizer.state.embedding.model.embeddings.unpooled.16.embeddings.item.weight.item.momentum1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw/, out/ of prepared rows, run/ and export/."""
    folder = tmp_path_factory.mktemp("histories")
    write_data(folder, rows=2000)
    train_here(folder / "out", folder / "run", **TRANSFORMER)
    cli.export([str(folder / "run"), str(folder / "export")])
    return folder


@pytest.fixture(scope="module")
def predicted(folder: Path) -> pa.Table:
    """What `recmtl predict` says of the raw rows by the export."""
    cli.predict([str(folder / "export"), str(folder / "raw"), str(folder / "predicted")])
    return pq.read_table(folder / "predicted")


def scores(table: pa.Table) -> np.ndarray:
    return np.stack([table[f"p_{task}"].to_numpy() for task in TASKS], axis=1)


def test_two_ranks_train_as_one_does(folder: Path, tmp_path: Path, run_recmtl: Callable) -> None:
    """Tables of two dimensions, dealt out over the ranks."""
    flags = FLAGS | {key.replace("__", "."): value for key, value in TRANSFORMER.items()}
    arguments = ["train", "mmoe", "--data", folder / "out", "--run", tmp_path / "two", *words(flags)]
    ended = run_recmtl(*arguments, ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(folder / "run"), rel=1e-4)
    one, two = (read(run)["test"] for run in (folder / "run", tmp_path / "two"))
    for task in TASKS:
        assert two[task]["auc"] == pytest.approx(one[task]["auc"], abs=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_interrupted_run_goes_on_bit_for_bit(folder: Path, tmp_path: Path, encoder: str) -> None:
    flags = SHORT | {"sequence__encoder": encoder, "checkpoint__every_steps": 7, "training__max_steps": 14}
    flags |= {"sequence__dropout": 0.1, "interaction__kind": "dcn"}
    train_here(folder / "out", tmp_path / "whole", **flags)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    (tmp_path / "resumed" / "results.json").unlink()
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-000000014")
    train_here(folder / "out", tmp_path / "resumed", **flags)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]
    assert steps(tmp_path / "resumed") == [7, 14]
    last = [weights(tmp_path / run / "checkpoints" / "step-000000014") for run in ("whole", "resumed")]
    assert last[0] == last[1]


def test_another_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    with pytest.raises(UserError, match=r"the run has sequence\.encoder transformer, not mean; go on with that"):
        train_here(folder / "out", tmp_path / "run", **TRANSFORMER | {"sequence__encoder": "mean"})


def test_run_and_export_predict_alike(folder: Path, predicted: pa.Table, tmp_path: Path) -> None:
    cli.predict([str(folder / "run"), str(folder / "raw"), str(tmp_path / "by run")])
    np.testing.assert_allclose(scores(pq.read_table(tmp_path / "by run")), scores(predicted), rtol=0, atol=1e-6)
    assert scores(predicted).std(axis=0).min() > 0.01


def test_a_run_scores_fewer_rows_at_once_where_histories_are_long(
    folder: Path, predicted: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is padded to its longest history: without a limit, one of thousands of events takes all memory."""
    sizes: list[int] = []
    batch = RunScorer._batch
    monkeypatch.setattr(RunScorer, "_batch", lambda scorer, part: sizes.append(part.size) or batch(scorer, part))
    monkeypatch.setattr(inputs, "ITEMS_AT_ONCE", 7 * 20)  # 20 is the recipe's max_length
    cli.predict([str(folder / "run"), str(folder / "raw"), str(tmp_path / "by run")])
    np.testing.assert_allclose(scores(pq.read_table(tmp_path / "by run")), scores(predicted), rtol=0, atol=1e-6)
    assert max(sizes) == 7
    assert sum(sizes) == predicted.num_rows


def test_an_export_reads_histories_longer_than_any_before(folder: Path, predicted: pa.Table) -> None:
    """The last ones alone matter, and other rows of a batch do not."""
    rows = pq.read_table(folder / "raw").select(FEATURE_COLUMNS)
    many = rows.slice(0, 40).to_pylist()
    for name, item in (("last_items", 3), ("last_brands", "brand 3"), ("last_actions", None)):
        for row in many[::2]:
            row[name] = [item] * 3000 + (row[name] or [])
    found = recmtl.load(folder / "export").predict(pa.Table.from_pylist(many, rows.schema))
    full = [number for number in range(40) if number % 2 or len(rows["last_brands"][number]) >= 20]
    assert len([number for number in full if number % 2 == 0]) > 0
    np.testing.assert_allclose(scores(found)[full], scores(predicted)[:40][full], rtol=0, atol=1e-6)


def test_embeddings_of_a_table_with_sequences(folder: Path, tmp_path: Path) -> None:
    found = {}
    for model in ("run", "export"):
        cli.embeddings([str(folder / model), "brand", str(tmp_path / f"{model}.parquet")])
        found[model] = pq.read_table(tmp_path / f"{model}.parquet").to_pydict()
    assert found["run"] == found["export"]
    assert {len(embedding) for embedding in found["run"]["embedding"]} == {4}
    assert set(found["run"]["value"]) == {None, *(f"brand {number}" for number in range(1, 6))}


def test_requests_with_long_histories(folder: Path, predicted: pa.Table, tmp_path: Path) -> None:
    rows = pq.read_table(folder / "raw").select(FEATURE_COLUMNS).slice(0, 50)
    with serving(folder / "export", tmp_path / "log") as server:
        answer = server.predict(as_json(rows))
        assert answer.status == 200, answer.body
        found = np.array([[row[task] for task in TASKS] for row in answer.json["predictions"]], np.float32)
        np.testing.assert_allclose(found, scores(predicted)[:50], rtol=0, atol=1e-6)

        body, length = infer_body(rows)
        answer = server.call("POST", "/v2/models/histories/infer", body, Inference_Header_Content_Length=str(length))
        assert answer.status == 200, answer.body
        outputs = {output["name"]: output["data"] for output in answer.json["outputs"]}
        found = np.array([outputs[f"p_{task}"] for task in TASKS], np.float32).T
        np.testing.assert_allclose(found, scores(predicted)[:50], rtol=0, atol=1e-6)

        # One history for all rows, longer than what is kept; the brands are given row by row.
        common = {"last_items": [1] * 2000, "last_actions": ["view"] * 2000}
        own = [{key: value for key, value in row.items() if key not in common} for row in as_json(rows.slice(0, 3))]
        for row in own:
            row["last_brands"] = ["brand 1"] * 2000
        answer = server.predict(own, common)
        assert answer.status == 200, answer.body
        wanted = recmtl.load(folder / "export").predict(
            pa.Table.from_pylist([row | common for row in own], rows.schema)
        )
        found = np.array([[row[task] for task in TASKS] for row in answer.json["predictions"]], np.float32)
        np.testing.assert_allclose(found, scores(wanted), rtol=0, atol=1e-6)

        own[1]["last_brands"] = ["brand 1"]
        answer = server.predict(own, common)
        assert answer.status == 400
        assert "in row 1 (counted from 0): column 'last_brands' has 1 items and column 'last_actions' 2000" in (
            answer.body.decode()
        )


def test_a_run_starts_from_one_whose_tables_pooled(tmp_path: Path) -> None:
    """A table that gets its first sequence is looked up otherwise; its rows and their states are those that were."""
    rows = {"train": 640, "val": 100, "test": 100}
    write_toy(tmp_path / "data", rows)
    later = write_grown(tmp_path / "later", tmp_path / "data", rows=rows)
    for path in (tmp_path / "later").glob("*/part-*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("last", table["tags"]), path, row_group_size=256)
    sequence = Feature("last", "sequence", "last", table="item", history="last", target="item", longest=3)
    replace(later, features=(*later.features, sequence)).save(tmp_path / "later")
    train_here(tmp_path / "data", tmp_path / "yesterday", training__max_steps=6, metrics__tensorboard=False)
    begin(tmp_path / "later", tmp_path / "yesterday", tmp_path / "today")
    before, now = (tensors(tmp_path / run) for run in ("yesterday", "today"))
    known = [row for row in range(200) if row not in REUSED["item"]]
    for pooled, unpooled in ((POOLED, UNPOOLED), (POOLED_STATE, UNPOOLED_STATE)):
        assert before[pooled].shape[0] == 200
        assert now[unpooled].shape[0] == 230
        assert torch.equal(now[unpooled][known], before[pooled][known])
    assert now[UNPOOLED_STATE][REUSED["item"]].count_nonzero() == 0
    assert before[POOLED_STATE][known].count_nonzero() > 0


def history_columns(names: list[str]) -> tuple[Feature, ...]:
    return tuple(Feature(n, "sequence", n, table="item", history="before", target="item", longest=3) for n in names)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (["last", "again"], "history 'before': columns last, now last, again"),
        (["again", "last"], "history 'before': columns last, now again, last"),
        ([], "feature 'last' is gone"),
    ],
)
def test_a_history_of_other_columns_is_no_start(tmp_path: Path, now: list[str], said: str) -> None:
    """One line that names the history and its columns, before anything is read of the run's weights."""
    rows = {"train": 640, "val": 100, "test": 100}
    for folder, columns in (("data", ["last"]), ("later", now)):
        before = tmp_path / "data"
        found = write_toy(before, rows) if folder == "data" else write_grown(tmp_path / folder, before, rows=rows)
        for path in (tmp_path / folder).glob("*/part-*.parquet"):
            table = pq.read_table(path)
            for name in columns:
                table = table.append_column(name, table["tags"])
            pq.write_table(table, path, row_group_size=256)
        replace(found, features=(*found.features, *history_columns(columns))).save(tmp_path / folder)
    train_here(tmp_path / "data", tmp_path / "yesterday", training__max_steps=1, metrics__tensorboard=False)
    with pytest.raises(
        UserError, match=rf"later: not what .*yesterday was trained on: {said}; extend the data of"
    ) as e:
        begin(tmp_path / "later", tmp_path / "yesterday", tmp_path / "today")
    assert "\n" not in str(e.value)
    assert "or train anew without --start-from" in str(e.value)
