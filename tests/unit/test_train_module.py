"""The dense part in micro-batches: the step of the whole batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import write_toy

from recmtl.config import MODELS, InteractionConfig, WeightingConfig, load_config
from recmtl.data.read.batch import Batch
from recmtl.data.read.reader import Reader
from recmtl.errors import UserError
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset

ROWS, SIZE = 48, 20
PADDING = 5
KNOWN_AHEAD = ("fixed", "uncertainty", "dwa")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Batch]:
    """Two tasks with weights, like given click, and one batch whose last rows are padding."""
    folder: Path = tmp_path_factory.mktemp("toy") / "data"
    dataset = write_toy(folder, {"train": ROWS, "val": 0, "test": 0})
    click, like = dataset.tasks
    like = replace(like, weight=0.5, parent="click", relation="given")
    dataset = replace(dataset, tasks=(replace(click, weight=2.0), like))
    batch = next(Reader(folder, dataset, "train", dataset.tasks, batch_size=ROWS, streams=4).batches())
    batch.rows = ROWS - PADDING
    batch.weights[batch.rows :] = 0
    return dataset, batch


def train_module_of(
    dataset: Dataset,
    name: str,
    method: str = "fixed",
    micro_batch_size: int = 0,
    interaction: InteractionConfig | None = None,
) -> TrainModule:
    torch.manual_seed(0)
    model = RankingModel(dataset, dataset.tasks, MODELS[name].config(), dim=8, interaction=interaction)
    weighting = WeightingConfig(method=method)  # type: ignore[arg-type]
    train_module = TrainModule(model, weighting, micro_batch_size)
    train_module.weighting.step = 3
    if method == "dwa":
        train_module.weighting.sums.copy_(torch.tensor([[0.0, 0], [3, 4], [4, 4]]))
        train_module.weighting.steps.fill_(1)
    return train_module


def pooled_embeddings(train_module: TrainModule, batch: Batch) -> dict[str, Tensor]:
    """As if looked up."""
    embeddings, generator = train_module.model.embeddings, torch.Generator().manual_seed(1)
    width = embeddings.width - batch.numeric.shape[1]
    return {name: torch.randn(len(batch.weights), width, generator=generator) for name in embeddings.regroup.keys}


def step(train_module: TrainModule, batch: Batch) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Loss, losses of the tasks, logits, gradients by name, those of the pooled embeddings among them."""
    pooled = {name: values.requires_grad_() for name, values in pooled_embeddings(train_module, batch).items()}
    loss, (losses, _, logits, _) = train_module.loss(pooled, batch)
    (2 * loss).backward()  # what goes back need not be 1
    gradients = {name: p.grad for name, p in (*train_module.named_parameters(), *pooled.items())}
    return loss, losses, logits, {name: g for name, g in gradients.items() if g is not None}


@pytest.mark.parametrize("method", KNOWN_AHEAD)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("home", "single_task")])
def test_micro_batches_add_up_to_the_step_of_the_whole_batch(toy, name, method):
    dataset, batch = toy
    assert_add_up(train_module_of(dataset, name, method), train_module_of(dataset, name, method, SIZE), batch)


@pytest.mark.parametrize("kind", ["dcn", "fm", "dot"])
@pytest.mark.parametrize("name", ["escm2", "stem"])
def test_micro_batches_go_through_crosses_too(toy, name, kind):
    dataset, batch = toy
    interaction = InteractionConfig(kind=kind, normalization="layer")
    whole, pieces = (train_module_of(dataset, name, "fixed", size, interaction) for size in (0, SIZE))
    assert_add_up(whole, pieces, batch)


def assert_add_up(of_whole: TrainModule, of_pieces: TrainModule, batch: Batch) -> None:
    """Both make the same step."""
    whole, pieces = step(of_whole, batch), step(of_pieces, batch)
    for wanted, found in zip(whole[:3], pieces[:3], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert set(pieces[3]) == set(whole[3])
    for key, wanted in whole[3].items():
        torch.testing.assert_close(pieces[3][key], wanted, rtol=1e-4, atol=1e-6, msg=key)


def test_a_micro_batch_holds_the_activations_of_its_rows(toy):
    dataset, batch = toy
    rows: list[int] = []
    train_module = train_module_of(dataset, "mmoe", micro_batch_size=SIZE)
    train_module.model.dense.register_forward_hook(lambda _, inputs, out: rows.append(len(out)))
    step(train_module, batch)
    assert rows == [20, 20, 3]


def test_predictions_do_not_depend_on_micro_batches(toy):
    dataset, batch = toy
    found = []
    for size in (0, SIZE):
        train_module = train_module_of(dataset, "stem", micro_batch_size=size).eval()
        with torch.no_grad():
            found.append(train_module.loss(pooled_embeddings(train_module, batch), batch)[1].logits)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("method", ["gradnorm", "pcgrad", "multibalance"])
def test_a_weighting_that_needs_the_whole_batch_is_refused(toy, method):
    with pytest.raises(UserError, match=rf"training\.micro_batch_size: 0 with weighting\.method {method}"):
        train_module_of(toy[0], "mmoe", method, SIZE)


def test_a_model_that_normalises_over_the_batch_is_refused(toy):
    with pytest.raises(UserError, match=r"training\.micro_batch_size: 0 with model\.name home"):
        train_module_of(toy[0], "home", micro_batch_size=SIZE)


@pytest.mark.parametrize(
    ("name", "normalization", "setting"),
    [("home", "none", r"model\.name home"), ("mmoe", "batch", r"interaction\.normalization batch")],
)
def test_a_batch_of_one_row_is_refused_where_it_is_normalised(toy, name, normalization, setting):
    """Whatever is in the row, 0 would be left of it."""
    dataset, _ = toy
    config = load_config(name)
    config.interaction.normalization = normalization
    config.training.batch_size = 2
    TrainModule.from_config(config, dataset, dataset.tasks)
    config.training.batch_size = 1
    with pytest.raises(UserError, match=rf"training\.batch_size: 2 or more with {setting}"):
        TrainModule.from_config(config, dataset, dataset.tasks)


@pytest.mark.parametrize("size", [0, SIZE])
@pytest.mark.parametrize(("name", "method"), [("mmoe", "fixed"), ("stem", "pcgrad")])
def test_weight_decay_pulls_what_is_looked_up_towards_0(toy, monkeypatch, name, method, size):
    """By λ e over the rows of the batch, whatever else gives embeddings gradients; padding and losses stay."""
    dataset, batch = toy
    if size and method == "pcgrad":
        pytest.skip("pcgrad takes no micro-batches")
    found = {}
    for decay in (0.0, 0.3):
        train_module = train_module_of(dataset, name, method, size)
        train_module.weight_decay = decay
        pooled = {key: values.requires_grad_() for key, values in pooled_embeddings(train_module, batch).items()}
        monkeypatch.setattr(train_module.model, "embed", lambda *_, pooled=pooled: pooled)
        loss, output = train_module(batch)
        loss.backward()
        found[decay] = loss.item(), output.losses, {key: values.grad for key, values in pooled.items()}
    values = {key: value.numpy()[: batch.rows] for key, value in pooled_embeddings(train_module, batch).items()}
    # The padding was made by hand: rows weigh what they weighed among all.
    squares = sum((value**2).sum() for value in values.values())
    assert found[0.3][0] - found[0.0][0] == pytest.approx(0.3 / 2 * squares / ROWS, rel=1e-4)
    assert torch.equal(found[0.3][1], found[0.0][1])
    for key, value in values.items():
        pull = (found[0.3][2][key] - found[0.0][2][key]).numpy()
        np.testing.assert_allclose(pull[: batch.rows], 0.3 * value / ROWS, rtol=1e-3, atol=1e-6)
        assert not pull[batch.rows :].any()
