"""ESMM against its equations, written in NumPy with the model's own weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
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
    "chain": (Task("click"), Task("cart", parent="click"), Task("buy", parent="cart")),
    "chain backwards": (Task("d", parent="c"), Task("c", parent="b"), Task("b", parent="a"), Task("a")),
    "tree and a loner": (Task("a"), Task("b", parent="a"), Task("c"), Task("d", parent="a", relation="given_not")),
    "mixed chain": (Task("a"), Task("b", parent="a", relation="given_not"), Task("c", parent="b")),
}
each_funnel = pytest.mark.parametrize("tasks", FUNNELS.values(), ids=FUNNELS)


def build(tasks: tuple[Task, ...], **sizes) -> Model:
    torch.manual_seed(0)
    entry = MODELS["esmm"]
    return entry.load()(entry.config(**sizes), Inputs(tasks, WIDTH, {})).double()


def inputs() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class FixedTowers(torch.nn.Module):
    """In place of the towers: logits of one's choice."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def tower(model: Model, i: int, x: np.ndarray) -> np.ndarray:
    values = {key: value.numpy() for key, value in model.state_dict().items()}
    layers = len(values) // 2
    for layer in range(layers):
        x = x @ values[f"towers.mlps.weights.{layer}"][i] + values[f"towers.mlps.biases.{layer}"][i]
        x = x * (x > 0) if layer < layers - 1 else x
    return x[:, 0]


def probability(task: Task, tasks: tuple[Task, ...], conditional: dict[str, np.ndarray]) -> np.ndarray:
    """The product along the chain, by recursion."""
    parent = next((other for other in tasks if other.name == task.parent), None)
    if parent is None:
        return conditional[task.name]
    p = probability(parent, tasks, conditional)
    return (p if task.relation == "given" else 1 - p) * conditional[task.name]


@each_funnel
@pytest.mark.parametrize("sizes", [{"tower": (8, 6)}, {"tower": ()}])
def test_forward_is_the_equation(tasks, sizes):
    model, x = build(tasks, **sizes), inputs()
    conditional = {task.name: 1 / (1 + np.exp(-tower(model, i, x.numpy()))) for i, task in enumerate(tasks)}
    p = np.column_stack([probability(task, tasks, conditional) for task in tasks])
    logits = model({"shared": x})
    np.testing.assert_allclose(logits.sigmoid().detach().numpy(), p, rtol=1e-12)
    np.testing.assert_allclose(logits.detach().numpy(), np.log(p / (1 - p)), rtol=0, atol=1e-10)
    logits = model.conditional_logits({"shared": x})
    np.testing.assert_allclose(
        logits.sigmoid().detach().numpy(), np.column_stack(list(conditional.values())), rtol=1e-12
    )
    # And in the precision it trains in.
    logits = model.float()({"shared": x.float()})
    np.testing.assert_allclose(logits.detach().numpy(), np.log(p / (1 - p)), rtol=1e-5, atol=1e-5)


@each_funnel
def test_every_parameter_gets_a_gradient(tasks):
    model = build(tasks, tower=(8,))
    labels = torch.ones(BATCH, len(tasks), dtype=torch.float64)
    F.binary_cross_entropy_with_logits(model({"shared": inputs()}), labels).backward()
    for name, parameter in model.named_parameters():
        for i, gradient in enumerate(parameter.grad):
            assert gradient.any(), f"{name}[{i}]"


@each_funnel
def test_without_a_parent_the_conditional_is_the_marginal(tasks):
    model, x = build(tasks), {"shared": inputs()}
    alone = [i for i, task in enumerate(tasks) if task.parent not in {other.name for other in tasks}]
    assert alone
    torch.testing.assert_close(model.conditional_logits(x)[:, alone], model(x)[:, alone], rtol=0, atol=1e-12)


def extremes(count: int) -> Tensor:
    """Every combination of ordinary and extreme logits, in single precision."""
    return torch.tensor(list(itertools.product((-60.0, -20.0, -1.0, 0.0, 1.0, 20.0, 60.0), repeat=count)))


def test_a_child_is_never_likelier_than_what_it_needs():
    tasks = (*FUNNELS["chain"], Task("leave", parent="cart", relation="given_not"))
    model = build(tasks)
    model.towers = FixedTowers(extremes(4))
    click, cart, buy, leave = model({"shared": torch.empty(0)}).unbind(1)
    assert (cart <= click).all()
    assert (buy <= cart).all()
    assert (leave <= -cart).all()
    for child, parent in ((cart, click), (buy, cart), (leave, -cart)):
        assert (
            child.sigmoid() <= parent.sigmoid() * (1 + 1e-6)
        ).all()  # torch's sigmoid is exact to the last digit only


@each_funnel
def test_extreme_logits_keep_loss_and_gradients_finite(tasks):
    model = build(tasks)
    for label in (0.0, 1.0):
        model.towers = FixedTowers(extremes(len(tasks)))
        logits = model({"shared": torch.empty(0)})
        losses = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")
        assert losses.isfinite().all()
        losses.sum().backward()
        gradient = model.towers.logits.grad
        assert gradient.isfinite().all()
        assert gradient.abs().max() <= len(tasks)  # each task's loss moves a tower's logit by at most 1


def test_extreme_logits_are_exact():
    """In single precision against double, where 1 − p alone would round to 0 or 1."""
    tasks = FUNNELS["mixed chain"]
    model = build(tasks)
    values = extremes(3)
    model.towers = FixedTowers(values)
    single = model({"shared": torch.empty(0)})
    a, b, c = 1 / (1 + np.exp(-values.numpy().astype(np.longdouble).T))
    not_a, not_b, not_c = 1 / (1 + np.exp(values.numpy().astype(np.longdouble).T))
    p_b, q_b = not_a * b, a + not_a * not_b
    wanted = [np.log(a / not_a), np.log(p_b / q_b), np.log(p_b * c / (q_b + p_b * not_c))]
    np.testing.assert_allclose(single.detach().numpy(), np.stack(wanted, 1).astype(float), rtol=1e-5, atol=1e-5)


def test_autocast_multiplies_in_full_precision():
    model = build(FUNNELS["chain"]).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model({"shared": inputs().float()}).dtype == torch.float32


@pytest.mark.parametrize("parent", [None, "not_trained"])
def test_several_tasks_without_a_parent_are_an_error(parent):
    with pytest.raises(UserError, match=r"esmm needs a task with a parent; name it in the recipe \(training a, b\)"):
        build((Task("a"), Task("b", parent=parent)))
