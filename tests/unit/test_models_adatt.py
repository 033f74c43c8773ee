"""AdaTT against its equations, written in NumPy with the model's own weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import assert_all_have_gradients, mixed, mlp, weights_of
from torch import Tensor
from torch.nn import functional as F

from recmtl.config import MODELS
from recmtl.models import Inputs, Model
from recmtl.models.adatt import Fusion
from recmtl.schema import Task

WIDTH, BATCH = 11, 7

CASES = {
    "one expert a task": {"task_experts": 1, "expert_widths": (12,), "tower": (9,)},
    "one level": {"task_experts": 2, "expert_widths": (12,), "tower": (), "levels": 1},
    "deeper": {"task_experts": 3, "expert_widths": (16, 12), "gate": (24,), "tower": (9, 8), "levels": 3},
}
each_case = pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
each_count = pytest.mark.parametrize("tasks", [1, 2, 3, 4])


def build(tasks: int, **sizes) -> Model:
    torch.manual_seed(0)
    entry = MODELS["adatt"]
    return entry.load()(
        entry.config(**sizes), Inputs(tuple(Task(f"task_{i}") for i in range(tasks)), WIDTH, {})
    ).double()


def inputs() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def equations(model: Model, x: np.ndarray, tasks: int, sizes: dict) -> np.ndarray:
    """Level by level, task by task, expert by expert."""
    weights = weights_of(model)
    own = sizes["task_experts"]
    h = [x] * tasks
    for level in range(sizes.get("levels", 2)):
        at = f"levels.{level}"
        outs = [mlp(weights, f"{at}.experts", e, h[e // own], False) for e in range(tasks * own)]
        following = []
        for t in range(tasks):
            f = mixed(mlp(weights, f"{at}.gates.0.logits", t, h[t], True), outs)
            for e in range(own):
                v = weights[f"{at}.v"][t, e] if own > 1 else 1.0
                f = f + v * outs[t * own + e]
            following.append(f)
        h = following
    return np.column_stack([mlp(weights, "towers.mlps", t, h[t], True) for t in range(tasks)])


@each_count
@each_case
def test_forward_is_the_equation(sizes, tasks):
    model, x = build(tasks, **sizes), inputs()
    wanted = equations(model, x.numpy(), tasks, sizes)
    np.testing.assert_allclose(model({"shared": x}).detach().numpy(), wanted, rtol=0, atol=1e-10)
    # And in the precision it trains in.
    np.testing.assert_allclose(model.float()({"shared": x.float()}).detach().numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert np.ptp(wanted, axis=0).min() > 0


@each_count
@each_case
def test_every_parameter_gets_a_gradient(sizes, tasks):
    model = build(tasks, **sizes)
    labels = torch.randint(0, 2, (BATCH, tasks)).double()
    F.binary_cross_entropy_with_logits(model({"shared": inputs()}), labels).backward()
    # The softmax over one expert is 1.
    assert_all_have_gradients(model, but=".gates." if tasks * sizes["task_experts"] == 1 else None)


@pytest.mark.parametrize("experts", [1, 2])
def test_what_a_level_adds_to_the_gated_mixture_is_the_tasks_own(experts):
    """f_t − softmax(W_t h_t)·[all experts] = Σ_e v_{t,e} · own_e, and with one expert that expert itself."""
    torch.manual_seed(0)
    level, h = Fusion(3, experts, WIDTH, (8,)).double(), inputs()
    outs = level.experts(h)
    shares = level.gates[0](h)
    torch.testing.assert_close(shares.sum(2), torch.ones(3, BATCH, dtype=torch.float64))
    residual = level(h) - torch.einsum("tbe,ebh->tbh", shares, outs)
    own = outs.unflatten(0, (3, experts))
    wanted = own[:, 0] if experts == 1 else torch.einsum("te,tebh->tbh", level.v, own)
    torch.testing.assert_close(residual, wanted)


def test_every_task_reaches_every_tasks_experts():
    model = build(3, task_experts=2, expert_widths=(12,), levels=1)
    for task in range(3):
        model.zero_grad()
        model({"shared": inputs()})[:, task].sum().backward()
        level = model.levels[0]
        assert all(gradient.any() for gradient in level.experts.weights[0].grad)
        # Gate and residual are the task's own.
        for parameter in (level.gates[0].logits.weights[0], level.v):
            assert [bool(gradient.any()) for gradient in parameter.grad] == [i == task for i in range(3)]


def test_residual_weights_start_uniform():
    torch.manual_seed(0)
    v = Fusion(200, 4, 2, (3,)).v
    assert v.abs().max() <= 0.5
    assert v.abs().max() > 0.49
    assert v.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.1)
    assert "v" not in dict(Fusion(2, 1, WIDTH, (8,)).named_parameters())  # 1, not learned


@each_case
def test_autocast_changes_logits_a_little(sizes):
    model, x = build(3, **sizes).float(), {"shared": inputs().float()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(x)
    rounded.float().sum().backward()
    torch.testing.assert_close(rounded.float(), model(x), rtol=0.05, atol=0.02)
