"""AITM against its equations, written in NumPy with the model's own weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import mlp, weights_of
from torch import Tensor
from torch.nn import functional as F

from recmtl.config import MODELS
from recmtl.models import Inputs, Model
from recmtl.objectives.losses import auxiliary_loss
from recmtl.schema import Task

WIDTH, BATCH = 11, 7

# Tasks, and by hand who comes before whom, in the order of computation.
FUNNELS = {
    "one task": ((Task("click"),), []),
    "its parent is not trained": ((Task("buy", parent="click"),), []),
    "pair": ((Task("click"), Task("buy", parent="click")), [("buy", "click")]),
    "child first": ((Task("buy", parent="click"), Task("click")), [("buy", "click")]),
    "exclusive": ((Task("view"), Task("like", parent="view", relation="given_not")), [("like", "view")]),
    "no parents": ((Task("a"), Task("b"), Task("c")), [("b", "a"), ("c", "b")]),
    "chain backwards": (
        (Task("d", parent="c"), Task("c", parent="b"), Task("b", parent="a"), Task("a")),
        [("b", "a"), ("c", "b"), ("d", "c")],
    ),
    "tree and a loner": (
        (Task("a"), Task("b", parent="a"), Task("c", parent="a"), Task("d")),
        [("b", "a"), ("c", "a"), ("d", "c")],
    ),
    "a link is not trained": ((Task("a"), Task("c", parent="b")), [("c", "a")]),
}
each_funnel = pytest.mark.parametrize(("tasks", "links"), FUNNELS.values(), ids=FUNNELS)
each_size = pytest.mark.parametrize(
    "sizes", [{"bottom": (12, 8)}, {"bottom": (16,), "transfer": (10,), "tower": (9,)}], ids=["paper", "deeper"]
)


def build(tasks: tuple[Task, ...], **sizes) -> Model:
    torch.manual_seed(0)
    entry = MODELS["aitm"]
    return entry.load()(entry.config(**sizes), Inputs(tasks, WIDTH, {})).double()


def inputs() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def equations(model: Model, x: np.ndarray, tasks: tuple[Task, ...], links: list[tuple[str, str]]) -> np.ndarray:
    weights = weights_of(model)
    q = {task.name: mlp(weights, "bottoms", i, x) for i, task in enumerate(tasks)}
    z = dict(q)
    for i, (task, before) in enumerate(links):
        w1, w2, w3 = np.split(weights["attention.project.weight"], 3)
        pair = [q[task], mlp(weights, f"transfers.{i}", 0, z[before])]
        scores = [((u @ w1.T) * (u @ w2.T)).sum(1, keepdims=True) / np.sqrt(u.shape[1]) for u in pair]
        total = sum(np.exp(score) for score in scores)
        z[task] = sum(np.exp(score) / total * (u @ w3.T) for score, u in zip(scores, pair, strict=True))
    return np.column_stack([mlp(weights, "towers.mlps", i, z[t.name], True) for i, t in enumerate(tasks)])


@each_funnel
@each_size
def test_forward_is_the_equation(tasks, links, sizes):
    model, x = build(tasks, **sizes), inputs()
    wanted = equations(model, x.numpy(), tasks, links)
    np.testing.assert_allclose(model({"shared": x}).detach().numpy(), wanted, rtol=0, atol=1e-10)
    # And in the precision it trains in.
    np.testing.assert_allclose(model.float()({"shared": x.float()}).detach().numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert np.ptp(wanted, axis=0).min() > 0


@each_funnel
@each_size
def test_every_parameter_gets_a_gradient(tasks, links, sizes):
    model = build(tasks, **sizes)
    labels = torch.randint(0, 2, (BATCH, len(tasks))).double()
    F.binary_cross_entropy_with_logits(model({"shared": inputs()}), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        for i, gradient in enumerate(parameter.grad.chunk(3) if "attention" in name else parameter.grad):
            assert gradient.any(), f"{name}[{i}]"


def test_attention_weights_sum_to_1():
    attention = build(FUNNELS["pair"][0], bottom=(8,)).attention
    pair = 5 * torch.randn(2, BATCH, 8, dtype=torch.float64)
    weights, _ = attention.attend(pair)
    torch.testing.assert_close(weights.sum(0), torch.ones(BATCH, dtype=torch.float64))
    assert ((weights > 0) & (weights < 1)).all()
    # Two equal vectors share alike, and give W3 u.
    weights, values = attention.attend(pair[:1].expand(2, -1, -1))
    torch.testing.assert_close(weights, torch.full_like(weights, 0.5))
    torch.testing.assert_close(attention(pair[:1].expand(2, -1, -1)), values[0])


def test_the_task_before_reaches_the_next_and_not_the_other_way():
    model = build(FUNNELS["pair"][0])
    for task, reached in ((0, [True, False]), (1, [True, True])):
        model.zero_grad()
        model({"shared": inputs()})[:, task].sum().backward()
        assert [bool(gradient.any()) for gradient in model.bottoms.weights[0].grad] == reached


CHAIN = (Task("click"), Task("cart", parent="click"), Task("buy", parent="cart"))
ROW_WEIGHTS = torch.tensor([0.5, 0.25, 0.25, 0.0])


def calibration(model, logits: Tensor, row_weights: Tensor) -> Tensor | None:
    """The calibrator where rows weigh the same for every task."""
    weights = row_weights.unsqueeze(1).expand_as(logits)
    return auxiliary_loss(model, logits, torch.zeros_like(logits), weights)


def logit(p: list[list[float]]) -> Tensor:
    return torch.tensor(p).logit()


def test_calibrator_is_the_equation():
    """0.6 · Σ_b w_b Σ_t max(p_t − p_{t−1}, 0), by hand; the padding row does not count."""
    logits = logit([[0.5, 0.7, 0.8], [0.5, 0.4, 0.6], [0.5, 0.4, 0.3], [0.1, 0.9, 0.9]])
    wanted = 0.6 * (0.5 * (0.2 + 0.1) + 0.25 * 0.2)
    assert calibration(build(CHAIN), logits, ROW_WEIGHTS).item() == pytest.approx(wanted, rel=1e-5)
    assert calibration(build(CHAIN, alpha=1.5), logits, ROW_WEIGHTS).item() == pytest.approx(wanted * 2.5, rel=1e-5)


def test_calibrator_is_0_when_probabilities_fall_along_the_chain():
    logits = logit([[0.9, 0.5, 0.1], [0.5, 0.5, 0.5], [0.3, 0.2, 0.1], [0.9, 0.8, 0.7]]).requires_grad_()
    loss = calibration(build(CHAIN), logits, torch.full((4,), 0.25))
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("name", ["one task", "its parent is not trained", "exclusive", "no parents"])
def test_calibrator_counts_given_parents_alone(name):
    tasks, _ = FUNNELS[name]
    assert calibration(build(tasks), torch.randn(4, len(tasks)), ROW_WEIGHTS) is None


def test_calibrator_leaves_out_the_pair_that_excludes_each_other():
    tasks = (Task("view"), Task("like", parent="view", relation="given_not"), Task("buy", parent="view"))
    loss = calibration(build(tasks), logit([[0.2, 0.9, 0.3]]), torch.ones(1))
    assert loss.item() == pytest.approx(0.6 * 0.1, rel=1e-4)


def test_alpha_0_is_no_calibrator():
    assert calibration(build(CHAIN, alpha=0.0), torch.randn(4, 3), ROW_WEIGHTS) is None


@each_funnel
def test_autocast_changes_logits_a_little(tasks, links):
    model, x = build(tasks).float(), {"shared": inputs().float()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(x)
    rounded.float().sum().backward()
    torch.testing.assert_close(rounded.float(), model(x), rtol=0.05, atol=0.02)
