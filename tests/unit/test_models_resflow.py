"""ResFlow against its equations, written in NumPy with the model's own weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import assert_all_have_gradients, weights_of
from torch import Tensor
from torch.nn import functional as F

from recmtl.config import MODELS
from recmtl.errors import UserError
from recmtl.models import Inputs, Model
from recmtl.schema import Task

WIDTH, BATCH = 11, 7

FUNNELS = {
    "one task": (Task("click"),),
    "its parent is not trained": (Task("buy", parent="click"),),
    "pair": (Task("click"), Task("buy", parent="click")),
    "exclusive": (Task("view"), Task("like", parent="view", relation="given_not")),
    "child first": (Task("buy", parent="click"), Task("click")),
    "chain backwards": (Task("d", parent="c"), Task("c", parent="b"), Task("b", parent="a"), Task("a")),
    "tree and a loner": (Task("a"), Task("b", parent="a"), Task("c"), Task("d", parent="a", relation="given_not")),
    "mixed chain": (Task("a"), Task("b", parent="a", relation="given_not"), Task("c", parent="b")),
}
each_funnel = pytest.mark.parametrize("tasks", FUNNELS.values(), ids=FUNNELS)
each_size = pytest.mark.parametrize("tower", [(8, 6), (9,), ()])


def build(tasks: tuple[Task, ...], **sizes) -> Model:
    torch.manual_seed(0)
    entry = MODELS["resflow"]
    return entry.load()(entry.config(**sizes), Inputs(tasks, WIDTH, {})).double()


def inputs() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def outputs(model: Model, tasks: tuple[Task, ...], task: Task, x: np.ndarray) -> list[np.ndarray]:
    """h_t^l of all layers l of one task, by recursion over its parents."""
    weights, place = weights_of(model), tasks.index(task)
    parent = next((other for other in tasks if other.name == task.parent), None)
    below = None if parent is None else outputs(model, tasks, parent, x)
    layers, found = sum(key.startswith("towers.mlps.weights.") for key in weights), []
    for layer in range(layers):
        x = x @ weights[f"towers.mlps.weights.{layer}"][place] + weights[f"towers.mlps.biases.{layer}"][place]
        last = layer == layers - 1
        x = x if last else x * (x > 0)
        if below is not None:
            x = x - below[layer] if last and task.relation == "given_not" else x + below[layer]
        found.append(x)
    return found


@each_funnel
@each_size
def test_forward_is_the_equation(tasks, tower):
    model, x = build(tasks, tower=tower), inputs()
    wanted = np.column_stack([outputs(model, tasks, task, x.numpy())[-1] for task in tasks])
    np.testing.assert_allclose(model({"shared": x}).detach().numpy(), wanted, rtol=0, atol=1e-12)
    # And in the precision it trains in.
    np.testing.assert_allclose(model.float()({"shared": x.float()}).detach().numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert np.ptp(wanted, axis=0).min() > 0


@each_funnel
@each_size
def test_every_parameter_gets_a_gradient(tasks, tower):
    model = build(tasks, tower=tower)
    labels = torch.randint(0, 2, (BATCH, len(tasks))).double()
    F.binary_cross_entropy_with_logits(model({"shared": inputs()}), labels).backward()
    assert_all_have_gradients(model)


@pytest.mark.parametrize("relation", ["given", "given_not"])
def test_a_child_without_weights_of_its_own_equals_its_parent(relation):
    tasks = (Task("a"), Task("b", parent="a"), Task("c", parent="b", relation=relation), Task("d"))
    model, sign = build(tasks, tower=(8, 6)), -1 if relation == "given_not" else 1
    for parameter in model.towers.parameters():
        parameter.data[1:3] = 0
    a, b, c, d = model({"shared": inputs()}).unbind(1)
    assert torch.equal(b, a)
    assert torch.equal(c, sign * a)
    assert not torch.equal(d, a)
    # What the child's first layer gives is lost where its later layers have no weights.
    model.towers.mlps.biases[0].data[1] = 1.0
    assert torch.equal(model({"shared": inputs()})[:, 1], a)
    model.towers.mlps.biases[-1].data[1] = 1.0
    torch.testing.assert_close(model({"shared": inputs()})[:, 1], a + 1)


def test_a_child_trains_its_ancestors_and_no_other():
    tasks = (Task("a"), Task("b", parent="a"), Task("c", parent="b"), Task("d", parent="a"))
    reached = {0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [0, 3]}
    model = build(tasks)
    for task, ancestors in reached.items():
        model.zero_grad()
        model({"shared": inputs()})[:, task].sum().backward()
        for parameter in model.parameters():
            assert [i for i, gradient in enumerate(parameter.grad) if gradient.any()] == ancestors


def test_dropout_acts_in_training_alone():
    model, x = build(FUNNELS["pair"], dropout=0.5), {"shared": inputs()}
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@each_funnel
def test_autocast_changes_logits_a_little(tasks):
    model, x = build(tasks).float(), {"shared": inputs().float()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(x)
    assert rounded.dtype == torch.float32
    rounded.sum().backward()
    torch.testing.assert_close(rounded, model(x), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("parent", [None, "not_trained"])
def test_several_tasks_without_a_parent_are_an_error(parent):
    with pytest.raises(UserError, match=r"resflow needs a task with a parent; name it in the recipe \(training a, b\)"):
        build((Task("a"), Task("b", parent=parent)))
