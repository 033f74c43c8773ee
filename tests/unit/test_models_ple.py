"""CGC and PLE against their equations, written in NumPy with the models' own weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import assert_all_have_gradients, mixed, mlp, weights_of
from torch import Tensor
from torch.nn import functional as F

from recmtl.config import MODELS
from recmtl.models import Inputs, Model
from recmtl.models.gated_experts import GatedExperts
from recmtl.schema import Task

WIDTH, BATCH = 11, 7
CASES = [
    ("cgc", {"shared_experts": 2, "task_experts": 1, "expert_widths": (8,), "tower": (5,)}),
    ("cgc", {"shared_experts": 1, "task_experts": 3, "expert_widths": (16, 12), "gate": (24,), "tower": ()}),
    ("ple", {"shared_experts": 2, "task_experts": 1, "expert_widths": (8,), "tower": (5,), "levels": 2}),
    (
        "ple",
        {
            "shared_experts": 3,
            "task_experts": 2,
            "expert_widths": (16, 12),
            "gate": (24,),
            "tower": (5, 4),
            "levels": 3,
        },
    ),
]
each_case = pytest.mark.parametrize(("name", "sizes"), CASES)
each_count = pytest.mark.parametrize("tasks", [1, 2, 3, 4])


def build(name: str, tasks: int, **sizes) -> Model:
    torch.manual_seed(0)
    entry = MODELS[name]
    return entry.load()(
        entry.config(**sizes), Inputs(tuple(Task(f"task_{i}") for i in range(tasks)), WIDTH, {})
    ).double()


def inputs() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def equations(model: Model, x: np.ndarray, tasks: int, sizes: dict) -> np.ndarray:
    """Level by level, expert by expert, gate by gate."""
    weights = weights_of(model)
    levels, own, shared = sizes.get("levels", 1), sizes["task_experts"], sizes["shared_experts"]
    h: list[np.ndarray] = [x] * (tasks + 1)
    for level in range(levels):
        at = f"levels.{level}"
        outs: list[list[np.ndarray]] = []
        number = 0
        for group in range(tasks + 1):
            outs.append([])
            for _ in range(shared if group == tasks else own):
                outs[-1].append(mlp(weights, f"{at}.experts", number, h[group], False))
                number += 1

        # A lone task's gate sees as many experts as the shared gate: they lie together.
        together = tasks == 1 and level < levels - 1
        following = [
            mixed(mlp(weights, f"{at}.gates.0.logits", t, h[t], True), outs[t] + outs[tasks]) for t in range(tasks)
        ]
        if level < levels - 1:
            everything = [out for group in outs for out in group]
            place = (f"{at}.gates.0.logits", 1) if together else (f"{at}.gates.1.logits", 0)
            following.append(mixed(mlp(weights, *place, h[tasks], True), everything))
        else:
            assert f"{at}.gates.1.logits.weights.0" not in weights  # no shared gate that nothing reads
            assert len(weights[f"{at}.gates.0.logits.weights.0"]) == tasks
        h = following
    return np.column_stack([mlp(weights, "towers.mlps", t, h[t], True) for t in range(tasks)])


@each_count
@each_case
def test_forward_is_the_equation(name, sizes, tasks):
    model, x = build(name, tasks, **sizes), inputs()
    wanted = equations(model, x.numpy(), tasks, sizes)
    np.testing.assert_allclose(model({"shared": x}).detach().numpy(), wanted, rtol=0, atol=1e-10)
    # And in the precision it trains in.
    np.testing.assert_allclose(model.float()({"shared": x.float()}).detach().numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert np.ptp(wanted, axis=0).min() > 0


@each_count
@each_case
def test_every_parameter_gets_a_gradient(name, sizes, tasks):
    """Of every expert and gate, each on its own; widths are such that no whole network is dead."""
    model = build(name, tasks, **sizes)
    labels = torch.randint(0, 2, (BATCH, tasks)).double()
    F.binary_cross_entropy_with_logits(model({"shared": inputs()}), labels).backward()
    assert_all_have_gradients(model)


def seen(level: GatedExperts, x: Tensor) -> np.ndarray:
    """Which gate sees which expert, by what reaches the expert's last bias [gates, experts]."""
    rows = []
    for gate in range(len(level(x))):
        level.zero_grad()
        level(x)[gate].sum().backward()
        rows.append([bool(gradient.any()) for gradient in level.experts.biases[-1].grad])
    return np.array(rows)


def test_the_shared_gate_of_the_first_level_sees_every_tasks_experts():
    model = build("ple", 3, shared_experts=2, task_experts=2, expert_widths=(8,), levels=2)
    wanted = [
        [1, 1, 0, 0, 0, 0, 1, 1],
        [0, 0, 1, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
    first, last = model.levels
    np.testing.assert_array_equal(seen(first, inputs()), wanted)
    np.testing.assert_array_equal(seen(last, torch.randn(BATCH, 8, dtype=torch.float64)), wanted[:3])


def test_a_level_keeps_tasks_apart_but_the_one_after_a_shared_gate_does_not():
    """CGC's experts of task 1 do not reach task 0; PLE's of the first level do, through the shared gate."""
    for name, reached in (("cgc", False), ("ple", True)):
        model = build(name, 2, shared_experts=2, task_experts=1, expert_widths=(8,))
        model({"shared": inputs()})[:, 0].sum().backward()
        assert bool(model.levels[0].experts.weights[0].grad[1].any()) is reached


def test_gates_give_shares():
    level = GatedExperts([2, 1, 3], [[0, 2], [1, 2], [2, 1, 0]], [[0], [1], [2]], WIDTH, (8,)).double()
    weights = level.choose(10 * inputs())[0].detach()
    torch.testing.assert_close(weights.sum(2), torch.ones(3, BATCH, dtype=torch.float64))
    assert ((weights > 0).all(1).int().tolist()) == [[1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1] * 6]


def test_one_level_of_ple_is_cgc():
    sizes = {"shared_experts": 2, "task_experts": 1, "expert_widths": (8,)}
    cgc, ple = build("cgc", 3, **sizes), build("ple", 3, levels=1, **sizes)
    assert torch.equal(cgc({"shared": inputs()}), ple({"shared": inputs()}))


@each_case
def test_autocast_changes_logits_a_little(name, sizes):
    model, x = build(name, 3, **sizes).float(), {"shared": inputs().float()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(x)
    rounded.float().sum().backward()
    torch.testing.assert_close(rounded.float(), model(x), rtol=0.05, atol=0.02)
