"""The optimiser of the dense part: experts, gates, towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import KeyedOptimizer, KeyedOptimizerWrapper

from recmtl.config import DenseConfig

CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}
"""The choices of `dense.optimizer`."""
DENSE_STATES = {"adam": 2, "adamw": 2, "adagrad": 1, "sgd": 0}
"""Copies of the dense parameters that their optimiser keeps."""


def dense_optimizer(config: DenseConfig, parameters: Mapping[str, Tensor], clip_norm: float = 0.0) -> KeyedOptimizer:
    """The dense part's optimiser.

    Args:
        config: the `dense` section of the configuration.
        parameters: of the dense part, by name.
        clip_norm: largest norm of their gradient; 0: no clipping.
    """
    cls = CLASSES[config.optimizer]
    # Fused: one pass over a parameter in place of the eight operations of Adam, each dispatched by itself. PyTorch 2.11
    # fuses Adagrad on CPUs only.
    fused = config.optimizer != "adagrad" or all(parameter.device.type == "cpu" for parameter in parameters.values())
    keyed: KeyedOptimizer = KeyedOptimizerWrapper(
        parameters, lambda params: cls(params, lr=config.lr, weight_decay=config.weight_decay, fused=fused or None)
    )
    if clip_norm:
        keyed = GradientClippingOptimizer(keyed, GradientClipping.NORM, max_gradient=clip_norm)
    return keyed
