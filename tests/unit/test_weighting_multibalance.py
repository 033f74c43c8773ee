"""MultiBalance against its formulas, on gradients that are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from recmtl.config import WeightingConfig
from recmtl.objectives.weighting import Weighting, make_weighting
from recmtl.objectives.weighting.multibalance import shares

RECIPE = (2.0, 0.5, 1.0)


def weighting_of(recipe: tuple[float, ...] = RECIPE, **keys: float) -> Weighting:
    return make_weighting(WeightingConfig(method="multibalance", **keys), torch.tensor(recipe))


def gradients_of(weighting: Weighting, gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What arrives at x [n], and at a parameter of every task's own [T], when the losses are ⟨g_t, x⟩ + own_t."""
    x = [torch.zeros(width, requires_grad=True) for width in (2, gradients.shape[1] - 2)]
    own = torch.zeros(len(gradients), 1, requires_grad=True)
    losses = 1 + torch.tensor(gradients, dtype=torch.float32) @ torch.cat(x) + own[:, 0]
    weighting(losses, x, [own]).backward()
    assert own.grad is not None
    return np.concatenate([piece.grad.numpy() for piece in x]), own.grad[:, 0].numpy()


def least(gram: np.ndarray, pull: float) -> np.ndarray:
    """Shares by brute force: the best of the optima on all faces of the simplex, from the equations of Lagrange."""
    found, best = None, np.inf
    for size in range(1, len(gram) + 1):
        for face in map(list, itertools.combinations(range(len(gram)), size)):
            q = gram[np.ix_(face, face)] + pull * np.eye(size)
            system = np.block([[2 * q, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            share = np.zeros(len(gram))
            share[face] = np.linalg.solve(system, np.append(np.zeros(size), 1))[:size]
            value = share @ gram @ share + pull * share @ share
            if share.min() >= 0 and value < best:
                found, best = share, value
    assert found is not None
    return found


@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("pull", [1e-4, 0.1, 10.0])
def test_shares_are_the_least_combination(tasks, pull):
    rng, on_the_edge = np.random.default_rng(tasks), 0
    for _ in range(50):
        vectors = rng.normal(size=(tasks, 3)) * rng.random((tasks, 1))
        wanted = least(vectors @ vectors.T, pull)
        np.testing.assert_allclose(shares(vectors @ vectors.T, pull), wanted, atol=1e-5)
        on_the_edge += wanted.min() == 0
    assert tasks == 1 or pull > 1 or on_the_edge > 5


def test_it_follows_its_formulas_over_steps():
    beta, pull = 0.8, 0.05
    weighting, rng, m = weighting_of(decay=beta, pull=pull), np.random.default_rng(0), None
    for _ in range(10):
        gradients = rng.normal(size=(3, 4)) * [[1], [5], [0.1]]
        norms = np.sqrt((gradients**2).sum(1))
        m = norms if m is None else beta * m + (1 - beta) * norms
        balanced = gradients / m[:, None]
        w = 3 * least(balanced @ balanced.T, pull) * m.mean() / m
        x, own = gradients_of(weighting, gradients)
        np.testing.assert_allclose(weighting.sizes, m, rtol=1e-5)
        np.testing.assert_allclose(x, (np.array(RECIPE) * w) @ gradients, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(own, np.array(RECIPE) * w, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(weighting.weights(), np.array(RECIPE) * w, rtol=1e-3, atol=1e-4)


def test_equal_gradients_change_nothing():
    weighting, gradients = weighting_of(), np.tile([1.0, -2.0, 0.5, 3.0], (3, 1))
    for scale in (1.0, 1.0, 3.0):
        x, own = gradients_of(weighting, scale * gradients)
        np.testing.assert_allclose(own, RECIPE, rtol=1e-5)
        np.testing.assert_allclose(x, scale * np.array(RECIPE) @ gradients, rtol=1e-5)


def test_a_size_that_stays_is_balanced_away():
    """Two tasks whose gradients differ in size alone send alike ones into x."""
    gradients = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 10.0, 10.0]])
    x, own = gradients_of(weighting_of((1.0, 1.0)), gradients)
    np.testing.assert_allclose(x, x[0], rtol=1e-5)
    assert own[0] == pytest.approx(10 * own[1], rel=1e-5)
    assert (own @ np.sqrt((gradients**2).sum(1))) == pytest.approx(np.sqrt((gradients**2).sum(1)).sum(), rel=1e-5)


def test_no_task_loses_by_a_step():
    rng = np.random.default_rng(1)
    for _ in range(100):
        gradients = rng.normal(size=(3, 4)) * rng.random((3, 1))
        x, _ = gradients_of(weighting_of((1.0, 1.0, 1.0), pull=1e-4), gradients)
        assert (gradients @ x / np.sqrt((gradients**2).sum(1)) > -2e-3).all()


def test_a_large_pull_evens_out_sizes_alone():
    gradients = np.random.default_rng(2).normal(size=(3, 4))
    norms = np.sqrt((gradients**2).sum(1))
    _, own = gradients_of(weighting_of((1.0, 1.0, 1.0), pull=1e6), gradients)
    np.testing.assert_allclose(own, norms.mean() / norms, rtol=1e-4)


def test_a_task_without_a_gradient_moves_nothing():
    """As one that no row of a batch has a label of: the others are weighted as if it were not there."""
    gradients = np.random.default_rng(3).normal(size=(3, 4))
    gradients[1] = 0
    first, alone = weighting_of(), weighting_of((2.0, 1.0))
    for step in range(3):
        x, _ = gradients_of(first, (step + 1) * gradients)
        wanted, _ = gradients_of(alone, (step + 1) * gradients[[0, 2]])
        np.testing.assert_allclose(x, wanted, rtol=1e-5)
    np.testing.assert_allclose(first.sizes[[0, 2]], alone.sizes, rtol=1e-6)
    assert first.sizes[1] == 0

    # And later on: what was known of it stays.
    weighting = weighting_of()
    gradients_of(weighting, gradients + 1)
    size = weighting.sizes[1].clone()
    gradients_of(weighting, gradients)
    assert weighting.sizes[1] == size
    assert weighting.factors.isfinite().all()
    x, own = gradients_of(weighting_of(), np.zeros((3, 4)))
    assert not x.any()
    assert own.tolist() == list(RECIPE)
