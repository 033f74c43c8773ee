"""OMoE against its equations, written in NumPy with the model's own weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recmtl.config import MODELS
from recmtl.models import Inputs, Model
from recmtl.schema import Task

WIDTH, BATCH = 11, 7
SIZES = [
    {"experts": 3, "expert_widths": (8,), "tower": (5,)},
    {"experts": 4, "expert_widths": (9, 6), "gate": (7,), "tower": (5, 4)},
    {"experts": 2, "expert_widths": (6,), "tower": ()},
]


def build(tasks: int, name: str = "omoe", **sizes) -> Model:
    torch.manual_seed(0)
    entry = MODELS[name]
    return entry.load()(
        entry.config(**sizes), Inputs(tuple(Task(f"task_{i}") for i in range(tasks)), WIDTH, {})
    ).double()


def inputs() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mlp(model: Model, name: str, i: int, x: np.ndarray, last_is_linear: bool) -> np.ndarray:
    values = {key: value.numpy() for key, value in model.state_dict().items() if key.startswith(name + ".")}
    layers = len(values) // 2
    for layer in range(layers):
        x = x @ values[f"{name}.weights.{layer}"][i] + values[f"{name}.biases.{layer}"][i]
        if layer < layers - 1 or not last_is_linear:
            x = x * (x > 0)
    return x


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", SIZES)
def test_forward_is_the_equation(tasks, sizes):
    model, x = build(tasks, **sizes), inputs()
    scores = np.exp(mlp(model, "level.gates.0.logits", 0, x.numpy(), True))
    shares = scores / scores.sum(1, keepdims=True)
    z = np.zeros((BATCH, sizes["expert_widths"][-1]))
    for e in range(sizes["experts"]):
        z += shares[:, e : e + 1] * mlp(model, "level.experts", e, x.numpy(), False)
    wanted = np.column_stack([mlp(model, "towers.mlps", t, z, True) for t in range(tasks)])
    np.testing.assert_allclose(model({"shared": x}).detach().numpy(), wanted, rtol=0, atol=1e-10)
    # And in the precision it trains in.
    np.testing.assert_allclose(model.float()({"shared": x.float()}).detach().numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_parameter_gets_a_gradient(tasks, sizes):
    model = build(tasks, **sizes)
    F.binary_cross_entropy_with_logits(
        model({"shared": inputs()}), torch.ones(BATCH, tasks, dtype=torch.float64)
    ).backward()
    for name, parameter in model.named_parameters():
        for i, gradient in enumerate(parameter.grad):
            assert gradient.any(), f"{name}[{i}]"


def test_all_tasks_see_the_same_z_under_dropout():
    """Equal towers then give equal logits; MMoE's gates tell its tasks apart."""
    for name, same in (("omoe", True), ("mmoe", False)):
        model, x = build(3, name, experts=3, expert_widths=(16,), tower=(), dropout=0.5), inputs()
        for parameter in model.towers.parameters():
            parameter.data[:] = parameter.data[:1].clone()
        first, second = model({"shared": x}), model({"shared": x})
        assert not torch.equal(first, second)  # dropout is at work
        assert torch.equal(first, first[:, :1].expand_as(first)) is same
