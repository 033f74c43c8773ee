"""What references share: networks and projections in NumPy, written apart from the package's own."""

from __future__ import annotations

import numpy as np
from torch import nn

Weights = dict[str, np.ndarray]


def weights_of(model: nn.Module) -> Weights:
    """A model's weights in float64, by name."""
    return {key: value.double().numpy() for key, value in model.state_dict().items()}


def mlp(weights: Weights, name: str, i: int, x: np.ndarray, last_is_linear: bool = False) -> np.ndarray:
    """Network `i` of those called `name`: relu after every layer, or all but the last."""
    layers = sum(key.startswith(name + ".weights.") for key in weights)
    for layer in range(layers):
        x = x @ weights[f"{name}.weights.{layer}"][i] + weights[f"{name}.biases.{layer}"][i]
        if layer < layers - 1 or not last_is_linear:
            x = x * (x > 0)
    return x


def mixed(scores: np.ndarray, choices: list[np.ndarray]) -> np.ndarray:
    """Σ_k softmax_k(scores) · choice k, one score for each choice."""
    assert scores.shape[1] == len(choices)
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return sum(shares[:, [k]] * choice for k, choice in enumerate(choices))


def assert_all_have_gradients(model: nn.Module, but: str | None = None) -> None:
    """Every parameter has a gradient, and each network of those that lie side by side in it.

    Args:
        model: after a backward pass.
        but: parameters with this in their name may have one that is 0.
    """
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        if but is not None and but in key:
            continue
        for i, gradient in enumerate(parameter.grad):
            assert gradient.any(), f"{key}[{i}]"


def pcgrad_in_numpy(gradients: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Algorithm 1 of the paper, on vectors [T, n]; Σ_i g_i'."""
    total = np.zeros(gradients.shape[1])
    for i, own in enumerate(gradients.astype(np.float64)):
        changed = own.copy()
        for j in orders[i]:
            other = gradients[j].astype(np.float64)
            if changed @ other < 0:
                changed = changed - (changed @ other) / (other @ other) * other
        total += changed
    return total
