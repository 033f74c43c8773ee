"""From logits to predictions in the unit of the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recmtl.schema import Task

LARGEST_EXPONENT = 60.0
"""e to this power is far above any label, and times the mean of any labels it is a float32."""


def predictions(logits: Tensor, tasks: Sequence[Task]) -> Tensor:
    """What is predicted for each task, from its logit z.

    - binary: the probability σ(z).
    - regression: μ + s·z, where μ and s are mean and deviation of the transformed training labels; with `log1p` the
      prediction is the label that log1p takes to it, sign(v)·(e^|v| − 1) of v = μ + s·z.
    - duration: μ·e^z, where μ is the mean training label: σ(z) are the odds of a weighted logistic regression
      (Covington et al., RecSys 2016, section 4.2).

    Args:
        logits: [B, T].
        tasks: in the order of the logits.

    Returns:
        [B, T] in the labels' units.
    """
    if all(task.kind == "binary" for task in tasks):
        return logits.sigmoid()
    return torch.stack([_predict(z, task) for z, task in zip(logits.unbind(1), tasks, strict=True)], dim=1)


def _predict(z: Tensor, task: Task) -> Tensor:
    """Predictions [B] of one task."""
    if task.kind == "binary":
        return z.sigmoid()
    if task.kind == "duration":
        return task.mean * z.clamp(max=LARGEST_EXPONENT).exp()
    value = task.mean + task.std * z
    if task.transform == "log1p":
        return value.sign() * value.abs().clamp(max=LARGEST_EXPONENT).expm1()
    return value
