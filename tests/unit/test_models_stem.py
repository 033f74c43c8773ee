"""STEM, ME-PLE and ME-MMoE against their equations, written in NumPy with the models' own weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import Weights, assert_all_have_gradients, mixed, mlp, weights_of
from torch import Tensor
from torch.nn import functional as F

from recmtl.config import MODELS
from recmtl.errors import UserError
from recmtl.models import Inputs, Model
from recmtl.models.gated_experts import TrainedMix
from recmtl.models.layers import mix
from recmtl.schema import Task

WIDTH, BATCH = 11, 7
CASES = [
    ("stem", {"shared_experts": 2, "task_experts": 1, "expert_widths": (8,), "tower": (5,)}),
    ("stem", {"shared_experts": 1, "task_experts": 3, "expert_widths": (16, 12), "gate": (24,), "tower": ()}),
    ("stem", {"shared_experts": 2, "task_experts": 2, "expert_widths": (12, 8), "tower": (5,), "levels": 3}),
    ("stem", {"shared_experts": 2, "task_experts": 1, "expert_widths": (8,), "tower": (5,), "cross_task": False}),
    ("stem", {"shared_experts": 2, "task_experts": 1, "expert_widths": (8,), "stop_gradient": False, "levels": 2}),
    ("me_ple", {"shared_experts": 2, "task_experts": 1, "expert_widths": (8,), "tower": (5,)}),
    ("me_ple", {"shared_experts": 1, "task_experts": 2, "expert_widths": (16, 12), "gate": (24,), "levels": 2}),
    ("me_mmoe", {"experts": 5, "expert_widths": (8,), "tower": (5,)}),
    ("me_mmoe", {"experts": 7, "expert_widths": (16, 12), "gate": (24,), "tower": ()}),
]
each_case = pytest.mark.parametrize(("name", "sizes"), CASES)
each_count = pytest.mark.parametrize("tasks", [1, 2, 3, 4])


def build(name: str, tasks: int, **sizes) -> Model:
    torch.manual_seed(0)
    entry = MODELS[name]
    return entry.load()(entry.config(**sizes), Inputs(names(tasks), WIDTH, {})).double()


def names(tasks: int) -> tuple[Task, ...]:
    return tuple(Task(f"task_{i}") for i in range(tasks))


def inputs(tasks: int) -> dict[str, Tensor]:
    """Every x: of every task's tables and of the shared ones."""
    generator = torch.Generator().manual_seed(1)
    sets = [*(task.name for task in names(tasks)), "shared"]
    return {name: torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64) for name in sets}


def stem(weights: Weights, x: dict[str, np.ndarray], tasks: int, sizes: dict) -> np.ndarray:
    """Level by level, expert by expert, gate by gate."""
    levels, own, shared = sizes.get("levels", 1), sizes["task_experts"], sizes["shared_experts"]
    h = [x[f"task_{t}"] for t in range(tasks)] + [x["shared"]]
    for level in range(levels):
        at = f"levels.{level}"
        outs: list[list[np.ndarray]] = []
        number = 0
        for group in range(tasks + 1):
            outs.append([])
            for _ in range(shared if group == tasks else own):
                outs[-1].append(mlp(weights, f"{at}.experts", number, h[group], False))
                number += 1
        everything = [out for group in outs for out in group]
        last = level == levels - 1
        # Gates that choose among as many experts lie together.
        alike = sizes.get("cross_task", True) or tasks == 1
        following = []
        for t in range(tasks):
            scores = mlp(weights, f"{at}.gates.0.logits", t, h[t] + h[tasks], True)
            following.append(mixed(scores, everything if alike else outs[t] + outs[tasks]))
        if not last:
            place = (f"{at}.gates.0.logits", tasks) if alike else (f"{at}.gates.1.logits", 0)
            following.append(mixed(mlp(weights, *place, h[tasks], True), everything))
        else:
            assert len(weights[f"{at}.gates.0.logits.weights.0"]) == tasks  # no gate that nothing reads
        h = following
    return np.column_stack([mlp(weights, "towers.mlps", t, h[t], True) for t in range(tasks)])


def me_ple(weights, x, tasks, sizes):
    return stem(weights, x, tasks, {**sizes, "cross_task": False})


def me_mmoe(weights: Weights, x: dict[str, np.ndarray], tasks: int, sizes: dict) -> np.ndarray:
    tables = [x[f"task_{t}"] for t in range(tasks)] + [x["shared"]]
    reads = sorted(expert % (tasks + 1) for expert in range(sizes["experts"]))
    experts = [mlp(weights, "experts", i, tables[table], False) for i, table in enumerate(reads)]
    everything = np.concatenate(tables, axis=1)
    logits = []
    for t in range(tasks):
        z = mixed(mlp(weights, "gates.logits", t, everything, True), experts)
        logits.append(mlp(weights, "towers.mlps", t, z, True))
    return np.column_stack(logits)


EQUATIONS = {"stem": stem, "me_ple": me_ple, "me_mmoe": me_mmoe}


@each_count
@each_case
def test_forward_is_the_equation(name, sizes, tasks):
    model, x = build(name, tasks, **sizes), inputs(tasks)
    weights = weights_of(model)
    wanted = EQUATIONS[name](weights, {key: value.numpy() for key, value in x.items()}, tasks, sizes)
    np.testing.assert_allclose(model(x).detach().numpy(), wanted, rtol=0, atol=1e-10)
    # And in the precision it trains in.
    single = model.float()({key: value.float() for key, value in x.items()})
    np.testing.assert_allclose(single.detach().numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert np.ptp(wanted, axis=0).min() > 0


@each_count
@each_case
def test_every_parameter_and_table_gets_a_gradient(name, sizes, tasks):
    model, x = build(name, tasks, **sizes), inputs(tasks)
    for value in x.values():
        value.requires_grad_()
    labels = torch.randint(0, 2, (BATCH, tasks)).double()
    F.binary_cross_entropy_with_logits(model(x), labels).backward()
    assert_all_have_gradients(model)
    assert all(value.grad.any() for value in x.values())


def reached(model: Model, tasks: int) -> np.ndarray:
    """Whether the logit of task i has a gradient in x of task j [T, T + 1]; the last column is the shared x."""
    x = inputs(tasks)
    for value in x.values():
        value.requires_grad_()
    rows = []
    for task in range(tasks):
        gradients = torch.autograd.grad(model(x)[:, task].sum(), list(x.values()), materialize_grads=True)
        rows.append([bool(gradient.any()) for gradient in gradients])
    return np.array(rows)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_no_task_trains_another_ones_tables(levels):
    """∂L_i/∂E_j = 0 for i ≠ j, exactly, through any number of levels; the gate sees them nevertheless."""
    model = build("stem", 3, expert_widths=(8,), task_experts=2, levels=levels)
    np.testing.assert_array_equal(reached(model, 3), np.hstack([np.eye(3), np.ones((3, 1))]))
    # What the shared gate's own tables feed flows forward: the logit of task 0 changes with x of task 1.
    x = inputs(3)
    before = model(x)[:, 0]
    assert not torch.equal(model({**x, "task_1": 2 * x["task_1"]})[:, 0], before)


def test_without_the_stop_gradient_they_do():
    model = build("stem", 3, expert_widths=(8,), stop_gradient=False)
    assert reached(model, 3).all()


def test_the_gate_is_trained_through_experts_of_other_tasks():
    """With everything else of a row's mixture fixed at equal outputs, only the others' experts move the gate."""
    model = build("stem", 2, expert_widths=(8,), task_experts=1, shared_experts=1)
    [level] = model.levels
    model(inputs(2))[:, 0].sum().backward()
    scores = level.gates[0].logits.biases[0].grad
    assert scores[0, 0, 1] != 0  # the score of task 1's expert in the gate of task 0
    assert not scores[1].any()
    assert not level.experts.biases[0].grad[1].any()


@pytest.mark.parametrize("levels", [1, 2])
def test_stem_with_both_switches_off_is_me_ple(levels):
    sizes = {"shared_experts": 2, "task_experts": 1, "expert_widths": (8,), "levels": levels}
    off, me_ple = build("stem", 3, **sizes, cross_task=False, stop_gradient=False), build("me_ple", 3, **sizes)
    x = inputs(3)
    assert torch.equal(off(x), me_ple(x))
    for one in (off, me_ple):
        one(x).sum().backward()
    for a, b in zip(off.parameters(), me_ple.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_experts_of_me_mmoe_take_turns_at_the_tables():
    model = build("me_mmoe", 2, experts=4, expert_widths=(8,))
    assert model.sizes == [2, 1, 1]
    assert reached(model, 2).all()
    with pytest.raises(UserError, match=r"model.experts: 4 or more, .* 3 tasks .* not 3"):
        build("me_mmoe", 3, experts=3)


@each_case
def test_autocast_changes_logits_a_little(name, sizes):
    model, x = build(name, 3, **sizes).float(), {key: value.float() for key, value in inputs(3).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(x)
    rounded.float().sum().backward()
    torch.testing.assert_close(rounded.float(), model(x), rtol=0.05, atol=0.02)


def test_a_stop_gradient_a_pair_is_two_mixes():
    torch.manual_seed(0)
    trained = torch.tensor([[1, 0, 1], [0, 1, 1]]).unsqueeze(1)
    gates = torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True)
    experts = torch.rand(3, 5, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 5, 4, dtype=torch.float64)
    z = TrainedMix.apply(gates, experts, trained)
    expected = mix(gates * trained, experts) + mix(gates * (1 - trained), experts.detach())
    torch.testing.assert_close(z, expected)
    for one, other in zip(
        torch.autograd.grad((z * weights).sum(), (gates, experts)),
        torch.autograd.grad((expected * weights).sum(), (gates, experts)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
