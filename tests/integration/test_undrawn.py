"""Rows that a checkpoint fills are not drawn first, and no row is used that holds nothing: here NaN in its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from grown import write_grown
from runs import train_here
from started import begin, tensors
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from toy import write_toy
from trained import evaluated, train, write_data

from recmtl import cli
from recmtl.config import load_run_config, to_toml
from recmtl.distributed import parallel
from recmtl.distributed.context import process_group
from recmtl.distributed.parallel import UndrawnTables, table_weights
from recmtl.errors import UserError
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.checkpoint_folder import best_checkpoint
from recmtl.training.runs import open_dataset
from recmtl.training.scorer import RunScorer
from recmtl.training.session import TrainSession
from recmtl.training.storage import SafeReader, weight_keys
from recmtl.training.trained import TrainedRun

SHORT = {"metrics__tensorboard": False, "model__expert_widths": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, data that grew from it, and a run of six steps."""
    folder = tmp_path_factory.mktemp("undrawn")
    write_toy(folder / "data", {"train": 640, "val": 100, "test": 100})
    write_grown(folder / "later", folder / "data", rows={"train": 640, "val": 100, "test": 100})
    train_here(folder / "data", folder / "run", training__max_steps=6, **SHORT)
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Memory that TorchRec and FBGEMM would have drawn holds NaN; the sizes of the pieces that do."""
    found: list[torch.Size] = []

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.shape)
        return tensor.data.fill_(torch.nan)

    monkeypatch.setattr(UndrawnTables, "leave", staticmethod(fill))
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is drawn: a table and a number of rows."""
    found: list[tuple[str, int]] = []
    inner = parallel._drawn

    def noted(seed: int, table: str, *place: float) -> Iterator[tuple[int, torch.Tensor]]:
        for low, values in inner(seed, table, *place):  # type: ignore[arg-type]
            found.append((table, len(values)))
            yield low, values

    monkeypatch.setattr(parallel, "_drawn", noted)
    return found


def assert_same(run: Path, other: Path) -> None:
    found, expected = tensors(run), tensors(other)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("placement", ["table_wise", "column_wise", "data_parallel"])
def test_a_new_run_draws_every_row_once(folder, tmp_path, undrawn, drawn, placement):
    train_here(folder / "data", tmp_path / "run", training__max_steps=1, sharding__type=placement, **SHORT)
    assert sorted(drawn) == [("item", 200), ("tag", 20), ("user", 50)]
    assert sum(size == (200, 16) for size in undrawn) >= 1
    assert all(tensor.isfinite().all() for tensor in tensors(tmp_path / "run").values())


@pytest.mark.parametrize("placement", ["table_wise", "column_wise", "data_parallel"])
def test_a_run_that_goes_on_draws_nothing(folder, tmp_path, undrawn, drawn, placement):
    flags = {"sharding__type": placement, "embedding__optimizer": "adagrad", **SHORT}
    train_here(folder / "data", tmp_path / "run", training__max_steps=3, **flags)
    drawn.clear()
    train_here(folder / "data", tmp_path / "run", training__max_steps=6, **flags)
    assert drawn == []
    assert undrawn
    train_here(folder / "data", tmp_path / "whole", training__max_steps=6, **flags)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_starts_from_another_draws_what_that_lacks(folder, tmp_path, monkeypatch, drawn):
    begin(folder / "later", folder / "run", tmp_path / "plain")
    drawn.clear()
    monkeypatch.setattr(UndrawnTables, "leave", staticmethod(lambda tensor: tensor.data.fill_(torch.nan)))
    begin(folder / "later", folder / "run", tmp_path / "undrawn")
    # New rows once in the tables' scale, then new and reused ones, from the first of them on, in that of the first run.
    assert {(table, rows) for table, rows in drawn if rows in (10, 30)} == {("user", 10), ("item", 30)}
    assert "tag" not in dict(drawn)
    assert_same(tmp_path / "undrawn", tmp_path / "plain")


def test_measuring_and_scoring_draw_nothing(tmp_path, undrawn, drawn):
    data = write_data(tmp_path)
    run = train(data, tmp_path / "run", "mmoe")
    drawn.clear()
    undrawn.clear()
    found = evaluated(data, run)
    assert np.isfinite(np.array([found[number] for number in sorted(found)])).all()
    stored = tensors(run)
    with process_group("cpu") as context:
        scorer = RunScorer(TrainedRun(run), context)
        for table, piece, *_ in table_weights(scorer.model):
            assert torch.equal(piece, stored[weight_keys(stored)[table]])
        scorer.end()
    assert drawn == []
    assert len(undrawn) >= 2 * len(TrainedRun(run).dataset.tables)


def test_a_model_of_an_optimiser_that_cpus_lack_is_measured_on_a_cpu(tmp_path):
    """What a run on GPUs leaves: its configuration names the optimiser, and measuring and scoring build none."""
    data = write_data(tmp_path)
    run = train(data, tmp_path / "run", "mmoe")
    expected = evaluated(data, run)
    config = load_run_config(run)
    config.embedding.optimizer = "adam"
    (run / "config.toml").write_text(to_toml(config))
    found = evaluated(data, run)
    assert all(np.array_equal(found[number], expected[number]) for number in expected)
    cli.evaluate([str(run), "--data", str(data)])
    for model, out in ((run, "from_run"), (tmp_path / "export", "from_export")):
        if model != run:
            cli.export([str(run), str(model)])
        cli.predict([str(model), str(tmp_path / "raw"), str(tmp_path / out), "--keep", "number"])
    one, two = (pq.read_table(tmp_path / out).sort_by("number") for out in ("from_run", "from_export"))
    np.testing.assert_allclose(one["p_click"], two["p_click"], atol=1e-6)


def test_tables_that_hold_nothing_are_not_used(folder):
    config = load_run_config(folder / "run")
    dataset, tasks = open_dataset(folder / "data", config)
    with process_group("cpu") as context:
        session = TrainSession(config, folder / "data", dataset, tasks, context)
        with pytest.raises(RuntimeError, match="the tables hold nothing: draw them or load a checkpoint"):
            session.run_batch(session.readers["train"].batches())
        session.draw_tables()
        session.run_batch(session.readers["train"].batches())


@pytest.mark.parametrize("data", ["data", "later"])
def test_a_checkpoint_that_lacks_rows_is_refused(folder, tmp_path, monkeypatch, data):
    """An index that knows the size of a table, and a piece of it only."""
    read = SafeReader.read_metadata

    def lacking(self: SafeReader, *arguments: object, **options: object):
        metadata = read(self, *arguments, **options)
        name = weight_keys(metadata.state_dict_metadata)["item"]
        stored = metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        half = [replace(chunk, sizes=torch.Size([150, 16])) for chunk in stored.chunks]
        metadata.state_dict_metadata[name] = replace(stored, chunks=half)
        return metadata

    monkeypatch.setattr(SafeReader, "read_metadata", lacking)

    def load() -> None:
        if data == "later":
            begin(folder / "later", folder / "run", tmp_path / "run")
        config = load_run_config(folder / "run")
        dataset, tasks = open_dataset(folder / "data", config)
        with process_group("cpu") as context:
            session = TrainSession(config, folder / "data", dataset, tasks, context)
            Checkpoints(folder / "run" / "checkpoints", session).load_whole(best_checkpoint(folder / "run"))

    with pytest.raises(UserError, match=r"cannot be loaded \(2400 of 3200 numbers of .*item.weight are there\)"):
        load()
