"""Layers on x before any model: they equal their formulas in NumPy, and every table set has its own."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from reference import assert_all_have_gradients, weights_of
from torch import Tensor

from recmtl.config import MODELS, InteractionConfig, WeightingConfig
from recmtl.errors import UserError
from recmtl.models.input_layers import InputLayers
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset, Feature, Table, Task

WIDTHS = {"user": 4, "item": 4, "tag": 8, "previous": 4, "word": 8, "alone": 12}
"""Of the features with an embedding; those of one dimension do not all lie side by side."""
EMBEDDED, NUMERIC, ROWS = sum(WIDTHS.values()), 3, 6
WIDTH = EMBEDDED + NUMERIC
SETS = ("click", "like", "shared")


def columns_of(widths: dict[str, int]) -> dict[str, slice]:
    ends = np.cumsum([*widths.values()])
    return {
        name: slice(int(end) - width, int(end)) for (name, width), end in zip(widths.items(), ends, strict=True)
    } | {f"number_{i}": slice(int(ends[-1]) + i, int(ends[-1]) + i + 1) for i in range(NUMERIC)}


def layers_of(table_sets: tuple[str, ...] = SETS, dropout: float = 0.0, **options: Any) -> InputLayers:
    torch.manual_seed(1)
    layers = InputLayers(InteractionConfig(**options), dropout, table_sets, columns_of(WIDTHS), WIDTH, NUMERIC)
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter)
    return layers.double()


def inputs(table_sets: tuple[str, ...] = SETS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64) for name in table_sets}


def assert_columns_are_kept(layers: InputLayers, x: np.ndarray, found: np.ndarray) -> None:
    for name, place in columns_of(WIDTHS).items():
        assert layers.columns[name] == place
    np.testing.assert_array_equal(found[:, :WIDTH], x)
    assert found.shape == (ROWS, layers.width)


@pytest.mark.parametrize("table_sets", [SETS, ("shared",)])
@pytest.mark.parametrize("rank", [0, 2])
def test_dcn_is_the_papers_formula(table_sets, rank):
    layers = layers_of(table_sets, kind="dcn", layers=3, rank=rank)
    weights, x = weights_of(layers), inputs(table_sets)
    outputs = layers(x)
    for i, name in enumerate(table_sets):
        first = h = x[name].numpy()
        for layer in range(3):
            if rank:
                matrix = weights[f"cross.factors.{2 * layer}"][i] @ weights[f"cross.factors.{2 * layer + 1}"][i]
            else:
                matrix = weights[f"cross.factors.{layer}"][i]
            h = first * (h @ matrix + weights[f"cross.biases.{layer}"][i]) + h
        np.testing.assert_allclose(outputs[name].detach().numpy(), h, rtol=1e-9)
    assert layers.width == WIDTH
    sum(output.sum() for output in outputs.values()).backward()
    assert_all_have_gradients(layers)


@pytest.mark.parametrize("rank", [0, 2])
def test_dcn_without_weights_is_x(rank):
    layers, x = layers_of(kind="dcn", rank=rank), inputs()
    for parameter in layers.parameters():
        torch.nn.init.zeros_(parameter)
    for name, output in layers(x).items():
        assert torch.equal(output, x[name])


def test_fm_adds_up_to_rendles_second_order_term():
    """Once by its sum over pairs of fields, for each dimension that two fields have."""
    layers, x = layers_of(kind="fm"), inputs()
    by_dim = {4: ("user", "item", "previous"), 8: ("tag", "word")}
    for name, output in layers(x).items():
        values, found = x[name].numpy(), output.numpy()
        assert_columns_are_kept(layers, values, found)
        for dim, fields in by_dim.items():
            pieces = [values[:, columns_of(WIDTHS)[field]] for field in fields]
            pairs = sum(a * b for a, b in combinations(pieces, 2))
            np.testing.assert_allclose(found[:, layers.columns[f"fm:{dim}"]], pairs, rtol=1e-9)
    assert layers.width == WIDTH + 4 + 8


def test_dot_gives_every_pair_of_fields_a_column():
    layers, x = layers_of(kind="dot"), inputs()
    pairs = [("user", "item"), ("user", "previous"), ("item", "previous"), ("tag", "word")]
    assert layers.width == WIDTH + len(pairs)
    for name, output in layers(x).items():
        values, found = x[name].numpy(), output.numpy()
        assert_columns_are_kept(layers, values, found)
        for pair in pairs:
            a, b = (values[:, columns_of(WIDTHS)[field]] for field in pair)
            [column] = found[:, layers.columns["dot:" + ":".join(sorted(pair))]].T
            np.testing.assert_allclose(column, (a * b).sum(1), rtol=1e-9)


@pytest.mark.parametrize("kind", ["fm", "dot"])
def test_fields_that_cannot_be_paired_are_named(kind):
    columns = {"user": slice(0, 4), "item": slice(4, 12)}
    with pytest.raises(UserError, match=rf"^interaction.kind: {kind} crosses embeddings of one dimension, and no two"):
        InputLayers(InteractionConfig(kind=kind), 0.0, ("shared",), columns, 12, 0)


def test_layer_normalisation_is_the_formula():
    layers, x = layers_of(normalization="layer"), inputs()
    weights = weights_of(layers)
    for i, (name, output) in enumerate(layers(x).items()):
        values = x[name].numpy()
        centred = values - values.mean(1, keepdims=True)
        wanted = centred / np.sqrt(values.var(1, keepdims=True) + 1e-5)
        wanted = wanted * weights["norm.scale"][i] + weights["norm.shift"][i]
        np.testing.assert_allclose(output.detach().numpy(), wanted, rtol=1e-9)


def test_batch_normalisation_is_of_every_column_and_comes_before_crosses():
    layers, x = layers_of(normalization="batch", kind="dot"), inputs()
    weights = weights_of(layers)
    for i, (name, output) in enumerate(layers(x).items()):
        values = x[name].numpy()
        wanted = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)
        wanted = wanted * weights["norm.scale"][i] + weights["norm.shift"][i]
        np.testing.assert_allclose(output.detach().numpy()[:, :WIDTH], wanted, rtol=1e-9)
        user, item = (wanted[:, columns_of(WIDTHS)[field]] for field in ("user", "item"))
        np.testing.assert_allclose(
            output.detach().numpy()[:, layers.columns["dot:item:user"]][:, 0], (user * item).sum(1), rtol=1e-9
        )


def test_dropout_is_of_embeddings_alone_and_of_training_alone():
    layers, x = layers_of(("shared",), dropout=0.4), inputs(("shared",))
    x["shared"] = x["shared"].repeat(500, 1)
    found = layers(x)["shared"]
    assert torch.equal(found[:, EMBEDDED:], x["shared"][:, EMBEDDED:])
    kept = found[:, :EMBEDDED] != 0
    assert kept.double().mean().item() == pytest.approx(0.6, abs=0.01)
    torch.testing.assert_close(found[:, :EMBEDDED][kept], x["shared"][:, :EMBEDDED][kept] / 0.6)
    layers.eval()
    assert torch.equal(layers(x)["shared"], x["shared"])


FEATURES = (
    Feature("user", table="user"),
    Feature("item", table="item"),
    Feature("previous", table="item"),
    Feature("price", kind="numeric"),
)
TASKS = (Task("click"), Task("like", parent="click"))
DATASET = Dataset("toy", {}, (Table("user", 5), Table("item", 7)), FEATURES, TASKS)
ALL = InteractionConfig(kind="dcn", normalization="batch")


def model_of(name: str, interaction: InteractionConfig | None = None, dropout: float = 0.0) -> RankingModel:
    torch.manual_seed(0)
    tasks = TASKS[:1] if name == "single_task" else TASKS
    return RankingModel(DATASET, tasks, MODELS[name].config(), dim=4, interaction=interaction, dropout=dropout)


def rows_of(model: RankingModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(9, 12, generator=generator) for name in model.embeddings.regroup.keys}


@pytest.mark.parametrize("name", MODELS)
def test_by_default_a_model_is_what_it_was(name):
    model = model_of(name)
    assert model.dense.input_layers is None
    assert not any("input_layers" in key for key in model.state_dict())


@pytest.mark.parametrize("kind", ["dcn", "fm", "dot"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_reads_through_them(name, kind):
    """In training, scoring and in the probabilities before they are composed; with the crosses of its own tables."""
    model = model_of(name, dataclasses.replace(ALL, kind=kind)).eval()
    x, numeric = rows_of(model), torch.ones(9, 1)
    crossed = model.dense.read({key: torch.cat([values, numeric], dim=1) for key, values in x.items()})
    layers, hooks = model.dense.input_layers, dict(model.dense._forward_pre_hooks)
    model.dense._forward_pre_hooks.clear()
    bare = model.dense(crossed)
    model.dense._forward_pre_hooks.update(hooks)
    assert torch.equal(model.score(x, numeric), bare)
    assert torch.equal(model.conditional_logits(x, numeric), model.dense.conditional_logits(crossed))
    assert isinstance(layers, InputLayers)
    assert layers.table_sets == tuple(model.embeddings.regroup.keys)
    model.train()
    model.outputs(x, numeric).sum().backward()
    for key, parameter in layers.named_parameters():
        assert parameter.grad is not None, key


def test_tasks_own_tables_stay_their_own():
    """STEM: a task reaches neither the embeddings of another one nor what crosses them."""
    model = model_of("stem", InteractionConfig(kind="dcn", normalization="layer"))
    x = {key: values.requires_grad_() for key, values in rows_of(model).items()}
    model.score(x, torch.ones(9, 1))[:, 0].sum().backward()  # click
    assert x["click"].grad.any()
    assert not x["like"].grad.any()
    for key, parameter in model.dense.input_layers.named_parameters():
        of_click, of_like, of_shared = parameter.grad
        assert of_click.any(), key
        assert of_shared.any(), key
        assert not of_like.any(), key


def test_micro_batches_want_no_statistics_of_the_batch():
    message = r"^training.micro_batch_size: 0 with interaction.normalization batch, which normalises over the batch"
    with pytest.raises(UserError, match=message):
        TrainModule(model_of("mmoe", InteractionConfig(normalization="batch")), WeightingConfig(), 4)
    TrainModule(model_of("mmoe", InteractionConfig(normalization="layer", kind="dcn")), WeightingConfig(), 4)
