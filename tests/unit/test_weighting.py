"""Task weightings against their formulas, on gradients that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import pcgrad_in_numpy

from recmtl.config import WeightingConfig
from recmtl.objectives.weighting import METHODS, Weighting, make_weighting
from recmtl.objectives.weighting.pcgrad import project

RECIPE = (2.0, 0.5, 1.0)


def weighting_of(method: str, recipe: tuple[float, ...] = (1.0, 1.0), **keys: float) -> Weighting:
    return make_weighting(WeightingConfig(method=method, **keys), torch.tensor(recipe))  # type: ignore[arg-type]


def gradient_of(weighting: Weighting, gradients: np.ndarray, offset: float = 1.0) -> np.ndarray:
    """What arrives at x [n] when the tasks' losses are offset + ⟨g_t, x⟩ at x = 0, with gradients g [T, n]."""
    x = torch.zeros(gradients.shape[1], requires_grad=True)
    own = torch.zeros(len(gradients), 1, requires_grad=True)  # a parameter a task, as towers are
    losses = offset + torch.tensor(gradients, dtype=torch.float32) @ x + own[:, 0]
    weighting(losses, [x], [own]).backward()
    assert x.grad is not None
    return x.grad.numpy()


@pytest.mark.parametrize("method", METHODS)
def test_one_task_has_the_gradient_of_its_own_loss(method):
    weighting = weighting_of(method, (1.5,))
    for _ in range(3):
        np.testing.assert_allclose(gradient_of(weighting, np.array([[1.0, -2.0]])), [1.5, -3.0], rtol=1e-6)
        weighting.observe(torch.tensor([1.0]), torch.ones(1))
        weighting.end_epoch()
    assert weighting.weights().tolist() == pytest.approx([1.5])


@pytest.mark.parametrize("method", [method for method in METHODS if method != "multibalance"])
def test_at_the_start_without_conflicts_every_method_is_the_fixed_one(method):
    """All but `multibalance`, which evens out sizes from the first step on."""
    gradients = np.random.default_rng(0).random((3, 5))  # positive: their inner products are too
    np.testing.assert_allclose(
        gradient_of(weighting_of(method, RECIPE), gradients), np.array(RECIPE) @ gradients, rtol=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_weighted_or_remembered_without_gradients(method):
    weighting = weighting_of(method, RECIPE)
    before = {name: value.clone() for name, value in weighting.state_dict().items()}
    with torch.no_grad():
        assert weighting(torch.tensor([1.0, 2.0, 3.0]), [torch.zeros(2)], []).item() == 6
    assert all(torch.equal(value, before[name]) for name, value in weighting.state_dict().items())


def test_uncertainty_follows_its_formula():
    weighting = weighting_of("uncertainty", RECIPE)
    s = np.array([-0.5, 0.0, 1.0])
    weighting.log_variance.data = torch.tensor(s, dtype=torch.float32)
    gradients = np.random.default_rng(1).normal(size=(3, 4))
    a = np.array(RECIPE)
    np.testing.assert_allclose(gradient_of(weighting, gradients, offset=0.7), (a * np.exp(-s)) @ gradients, rtol=1e-5)
    np.testing.assert_allclose(weighting.log_variance.grad, a * (0.5 - 0.7 * np.exp(-s)), rtol=1e-5)
    np.testing.assert_allclose(weighting.weights(), a * np.exp(-s), rtol=1e-6)
    losses = torch.tensor([0.3, 0.2, 0.1])
    wanted = (a * (np.exp(-s) * losses.numpy() + s / 2)).sum()
    assert weighting(losses, [], []).item() == pytest.approx(wanted, rel=1e-5)


def test_uncertainty_settles_where_its_optimum_is():
    weighting, losses = weighting_of("uncertainty", RECIPE), torch.tensor([0.05, 0.5, 2.0])
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        weighting(losses, [], []).backward()
        optimizer.step()
    torch.testing.assert_close(weighting.log_variance.detach(), torch.log(2 * losses), rtol=1e-3, atol=1e-3)


def test_dwa_follows_its_formula():
    weighting, gradients = weighting_of("dwa", RECIPE, temperature=0.5), np.random.default_rng(2).normal(size=(3, 4))
    epochs = np.random.default_rng(3).random((5, 3)) + 0.5
    for epoch, sums in enumerate(epochs):
        w = np.ones(3)
        if epoch > 1:
            w = np.exp(epochs[epoch - 1] / epochs[epoch - 2] / 0.5)
            w = 3 * w / w.sum()
        np.testing.assert_allclose(gradient_of(weighting, gradients), (np.array(RECIPE) * w) @ gradients, rtol=1e-4)
        np.testing.assert_allclose(weighting.weights(), np.array(RECIPE) * w, rtol=1e-5)
        for part in (0.25, 0.75):  # an epoch's losses come in several windows
            weighting.observe(torch.tensor(part * sums, dtype=torch.float32), torch.full((len(sums),), part))
        weighting.end_epoch()


def test_dwa_with_equal_rates_has_weights_of_one():
    weighting = weighting_of("dwa", RECIPE)
    for scale in (1.0, 0.9, 0.6):
        weighting.observe(scale * torch.tensor([0.1, 5.0, 2.0]), torch.ones(3))
        weighting.end_epoch()
        gradient_of(weighting, np.eye(3))
        torch.testing.assert_close(weighting.factors, torch.ones(3))


def test_gradnorm_follows_its_formula():
    """Its step on w against automatic differentiation of Σ |G − target|, then Adam's formula, over steps."""
    alpha, lr = 0.7, 0.03
    weighting, rng = weighting_of("gradnorm", RECIPE, alpha=alpha, lr=lr), np.random.default_rng(4)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=lr)
    w, first, m, v = np.ones(3), None, np.zeros(3), np.zeros(3)
    for step in range(1, 20):
        gradients, losses = rng.normal(size=(3, 4)) * [[1], [2], [0.5]], rng.random(3) + 0.5
        first = losses if first is None else first
        w = 3 * w / w.sum()
        leaf, x = torch.tensor(w, requires_grad=True), torch.zeros(4, dtype=torch.float64, requires_grad=True)
        weighted = leaf * (torch.tensor(gradients) @ x)
        sizes = torch.stack([torch.autograd.grad(one, x, create_graph=True)[0].norm() for one in weighted])
        rates = losses / first / (losses / first).mean()
        (sizes - (sizes.mean() * torch.tensor(rates) ** alpha).detach()).abs().sum().backward()
        assert leaf.grad is not None
        wanted = leaf.grad.numpy()

        optimizer.zero_grad()
        found = gradient_of(weighting, gradients, offset=torch.tensor(losses, dtype=torch.float32))
        np.testing.assert_allclose(weighting.factors, w, rtol=1e-4)
        np.testing.assert_allclose(found, (np.array(RECIPE) * w) @ gradients, rtol=1e-3)
        np.testing.assert_allclose(weighting.w.grad, wanted, rtol=1e-4)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * wanted, 0.999 * v + 0.001 * wanted**2
        w = w - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    assert weighting.factors.sum().item() == pytest.approx(3)
    assert weighting.factors.argmin() == 1  # its gradients are the largest


def test_gradnorm_weights_never_leave_the_positive():
    weighting = weighting_of("gradnorm", lr=3.0)
    weighting.w.data = torch.tensor([-5.0, 1.0])
    gradient_of(weighting, np.eye(2))
    assert weighting.factors.sum().item() == pytest.approx(2)
    assert (weighting.factors > 0).all()


def test_pcgrad_follows_its_formula():
    rng = np.random.default_rng(5)
    weighting, orders = weighting_of("pcgrad", (2.0, 0.5, 1.0, 3.0)), set()
    for step in range(50):
        weighting.step = step
        gradients = rng.normal(size=(4, 6))
        order = weighting._orders(4, torch.device("cpu")).numpy()
        assert [sorted({*row, i}) for i, row in enumerate(order)] == [[0, 1, 2, 3]] * 4
        orders.add(order.tobytes())
        wanted = pcgrad_in_numpy(np.array([[2.0], [0.5], [1.0], [3.0]]) * gradients, order)
        np.testing.assert_allclose(gradient_of(weighting, gradients), wanted, rtol=1e-3, atol=1e-4)
    assert len(orders) > 40
    weighting.step = 0
    again = weighting._orders(4, torch.device("cpu"))
    assert torch.equal(again, weighting._orders(4, torch.device("cpu")))


def test_two_tasks_of_pcgrad_gain_both_from_a_step():
    rng = np.random.default_rng(6)
    for _ in range(100):
        gradients = rng.normal(size=(2, 3)) * rng.random((2, 1))
        total = gradient_of(weighting_of("pcgrad"), gradients)
        assert (gradients @ total > -1e-6).all()
    opposite = np.array([[1.0, 0.0], [-3.0, 0.0]])
    np.testing.assert_allclose(gradient_of(weighting_of("pcgrad"), opposite), [0, 0], atol=1e-6)


def test_projections_of_a_task_without_gradient():
    gram = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert project(gram, torch.tensor([[1], [0]])).tolist() == [1, 1]


def test_pcgrad_leaves_what_one_task_alone_reaches():
    x, shared = torch.zeros(2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    towers, alone = torch.zeros(2, 3, 1, requires_grad=True), torch.zeros(2, requires_grad=True)
    ends = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    # Tasks conflict on x and on shared[0]; shared[1] and alone belong to task 0, each tower to its own.
    losses = torch.stack(
        [
            ends[0] @ x + 3 * shared[0].sum() + 100 * shared[1].sum() + 7 * towers[0].sum() + 5 * alone.sum(),
            ends[1] @ x - 2 * shared[0].sum() + 9 * towers[1].sum(),
        ]
    )
    weighting_of("pcgrad")(losses, [x], [shared, towers, alone]).backward()
    vectors = np.array([[1.0, 2.0, 3.0, 3.0], [-1.0, 0.5, -2.0, -2.0]])
    wanted = pcgrad_in_numpy(vectors, np.array([[1], [0]]))
    assert not np.allclose(wanted, vectors.sum(0))
    np.testing.assert_allclose(x.grad, wanted[:2], rtol=1e-5)
    np.testing.assert_allclose(shared.grad, [wanted[2:], [100, 100]], rtol=1e-5)
    np.testing.assert_allclose(towers.grad.flatten(), [7, 7, 7, 9, 9, 9], rtol=1e-5)
    np.testing.assert_allclose(alone.grad, [5, 5], rtol=1e-5)


def test_table_sets_that_one_task_reads_keep_their_gradient():
    """As STEM's tables of one task."""
    pooled = [torch.zeros(2, 2, requires_grad=True) for _ in range(3)]
    own = torch.zeros(1, requires_grad=True)
    losses = torch.stack(
        [pooled[0].sum() + pooled[2].sum() + own.sum(), 4 * pooled[1].sum() - 2 * pooled[2].sum() + own.sum()]
    )
    weighting_of("pcgrad")(losses, pooled, [own]).backward()
    wanted = pcgrad_in_numpy(np.array([[1.0, 1, 1, 1, 1], [-2, -2, -2, -2, 1]]), np.array([[1], [0]]))
    for tensor, gradient in zip([*pooled, own], (1, 4, wanted[:4].reshape(2, 2), wanted[4:]), strict=True):
        np.testing.assert_allclose(tensor.grad, np.broadcast_to(gradient, tensor.shape), rtol=1e-5)
