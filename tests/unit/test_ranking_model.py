"""A ranking model by itself: no labels, no process group, tables in this process's memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from toy import write_toy

from recmtl.config import MODELS, parse_config
from recmtl.data.read.batch import Batch
from recmtl.data.read.reader import Reader
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset

ROWS = 24


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Batch]:
    """Two tasks, like given click, and a batch."""
    folder: Path = tmp_path_factory.mktemp("toy") / "data"
    dataset = write_toy(folder, {"train": ROWS, "val": 0, "test": 0})
    click, like = dataset.tasks
    dataset = replace(dataset, tasks=(click, replace(like, parent="click")))
    return dataset, next(Reader(folder, dataset, "train", dataset.tasks, batch_size=ROWS, streams=4).batches())


def model_of(dataset: Dataset, name: str, **sections) -> RankingModel:
    torch.manual_seed(0)
    config = parse_config({"model": {"name": name}, "embedding": {"dim": 8}, **sections}, "here")
    tasks = dataset.tasks[:1] if name == "single_task" else dataset.tasks
    return RankingModel.from_config(config, dataset, tasks, device="cpu")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_scores_what_it_embeds(toy, name):
    dataset, batch = toy
    assert not dist.is_initialized()
    model = model_of(dataset, name).eval()
    with torch.no_grad():
        logits = model(batch.sparse, batch.numeric)
        x = model.embed(batch.sparse)
        assert torch.equal(model.score(x, batch.numeric), logits)
    assert logits.dtype == torch.float32
    assert logits.shape == (ROWS, 1 if name == "single_task" else 2)
    assert list(x) == list(model.dense.table_sets(model.dense.config, model.dense.inputs.tasks))
    width = model.embeddings.width - batch.numeric.shape[1]
    assert all(values.shape == (ROWS, width) for values in x.values())


def test_parameters_given_take_the_place_of_the_models(toy):
    dataset, batch = toy
    model = model_of(dataset, "mmoe")
    x = model.embed(batch.sparse)
    zeros = {name: torch.zeros_like(p) for name, p in model.dense.named_parameters()}
    assert not model.outputs(x, batch.numeric, zeros).any()
    assert model.score(x, batch.numeric).all()


def test_conditional_probabilities_multiply_to_those_of_the_tasks(toy):
    dataset, batch = toy
    model = model_of(dataset, "esmm")
    x = model.embed(batch.sparse)
    p = model.score(x, batch.numeric).sigmoid()
    click, like_given_click = model.conditional_logits(x, batch.numeric).sigmoid().unbind(1)
    torch.testing.assert_close(p, torch.stack([click, click * like_given_click], dim=1))


def test_autocast_is_an_option_and_logits_stay_float32(toy):
    dataset, batch = toy
    exact, rounded = (model_of(dataset, "mmoe", training={"amp": amp}) for amp in ("none", "bf16"))
    wanted, found = exact(batch.sparse, batch.numeric), rounded(batch.sparse, batch.numeric)
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.05)


def test_training_adds_nothing_to_the_models_weights(toy):
    """What is trained can be scored without the objective, under the same names."""
    dataset, batch = toy
    model = model_of(dataset, "stem")
    train_module = TrainModule(model)
    names = {f"model.{name}" for name in model.state_dict()}
    assert set(train_module.state_dict()) == names
    torch.testing.assert_close(train_module(batch)[1].logits, model(batch.sparse, batch.numeric))
