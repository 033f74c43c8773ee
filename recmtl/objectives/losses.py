"""The loss of every model: weighted binary cross entropy on logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def task_losses(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Σ_b w_b · BCE(logit_{b,t}, y_{b,t}) for every task.

    Args:
        logits: [B, T].
        labels: [B, T], 0 or 1.
        weights: [B], 0 for padding; the batch's weights make the mean over ranks the mean over the global batch.

    Returns:
        [T], in nats.
    """
    return (F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weights.unsqueeze(1)).sum(0)
