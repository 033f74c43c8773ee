"""Losses and predictions of tasks that are numbers, beside their formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recmtl.models.predictions import predictions
from recmtl.objectives.losses import task_losses
from recmtl.schema import Task

CLICK = Task("click")
WATCH = Task("watch", kind="duration", mean=30.0)
AMOUNT = Task("amount", kind="regression", mean=5.0, std=2.0)
LOGARITHM = Task("logarithm", kind="regression", transform="log1p", mean=1.0, std=0.5)
HUBER = Task("huber", kind="regression", loss="huber", mean=-1.0, std=3.0)
TASKS = (CLICK, WATCH, AMOUNT, LOGARITHM, HUBER)


def batch(rows: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(0)
    labels = [rng.random(rows) < 0.3, rng.exponential(30, rows), *(rng.normal(0, 8, rows) for _ in range(3))]
    logits, weights = rng.normal(size=(rows, len(TASKS))), rng.random((rows, len(TASKS)))
    return torch.from_numpy(logits), torch.from_numpy(np.stack(labels, axis=1)), torch.from_numpy(weights)


def reference_losses(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """ℓ [B, T]."""
    p = 1 / (1 + np.exp(-z))
    target = np.sign(y[:, 3]) * np.log(1 + np.abs(y[:, 3]))
    error = z[:, 4] - (y[:, 4] + 1) / 3
    return np.stack(
        [
            -np.where(y[:, 0] == 1, np.log(p[:, 0]), np.log(1 - p[:, 0])),
            -y[:, 1] / 30 * np.log(p[:, 1]) - np.log(1 - p[:, 1]),
            (z[:, 2] - (y[:, 2] - 5) / 2) ** 2,
            (z[:, 3] - (target - 1) / 0.5) ** 2,
            np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5),
        ],
        axis=1,
    )


def test_losses_are_their_formulas():
    logits, labels, weights = batch()
    wanted = (weights.numpy() * reference_losses(logits.numpy(), labels.numpy())).sum(0)
    np.testing.assert_allclose(task_losses(logits, labels, weights, TASKS), wanted, rtol=1e-9)


def test_missing_labels_have_no_loss_and_no_gradient():
    logits, labels, weights = batch()
    missing = torch.rand(labels.shape) < 0.5
    weights[missing] = 0
    logits.requires_grad_()
    losses = task_losses(logits, labels.masked_fill(missing, torch.nan), weights, TASKS)
    losses.sum().backward()
    wanted = (weights.numpy() * reference_losses(logits.detach().numpy(), labels.numpy())).sum(0)
    np.testing.assert_allclose(losses.detach(), wanted, rtol=1e-9)
    assert logits.grad.isfinite().all()
    assert not logits.grad[missing].any()


def test_predictions_are_in_the_unit_of_the_labels():
    z = batch()[0].numpy()
    value = 1 + 0.5 * z[:, 3]
    wanted = [1 / (1 + np.exp(-z[:, 0])), 30 * np.exp(z[:, 1]), 5 + 2 * z[:, 2]]
    wanted += [np.sign(value) * (np.exp(np.abs(value)) - 1), -1 + 3 * z[:, 4]]
    np.testing.assert_allclose(predictions(torch.from_numpy(z), TASKS), np.stack(wanted, axis=1), rtol=1e-9)


@pytest.mark.parametrize("task", TASKS[1:], ids=lambda task: task.name)
def test_a_perfect_prediction_is_the_label(task):
    """Where the loss of one row is least, the prediction is its label."""
    label = torch.tensor([[7.5]], dtype=torch.float64)
    z = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
    optimizer = torch.optim.LBFGS([z], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task_losses(z, label, torch.ones_like(label), (task,)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(predictions(z.detach(), (task,)), label, rtol=1e-4, atol=1e-6)


def test_a_constant_prediction_of_a_duration_is_the_mean():
    """The optimum of the weighted logistic regression is the mean, not nearly so, also where most stay for 0 s."""
    labels = torch.from_numpy(np.random.default_rng(1).exponential(60, 500) * (np.arange(500) % 3 == 0)).unsqueeze(1)
    z = torch.log(labels.mean() / WATCH.mean).expand(500, 1).clone().requires_grad_()
    task_losses(z, labels, torch.full_like(labels, 1 / 500), (WATCH,)).sum().backward()
    assert z.grad.sum().item() == pytest.approx(0, abs=1e-12)
    assert predictions(z.detach(), (WATCH,))[0].item() == pytest.approx(labels.mean().item())


@pytest.mark.parametrize("z", [-1e4, 1e4])
def test_wild_logits_give_finite_predictions(z):
    found = predictions(torch.full((1, len(TASKS)), z), TASKS)
    assert found.isfinite().all()
