"""The losses: weighted binary cross entropy on logits, and what a model's paper adds to it."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor
from torch.nn import functional as F

from recmtl.models import Model
from recmtl.models.aitm import AITM
from recmtl.models.pepnet import PEPNet


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


@singledispatch
def auxiliary_loss(model: Model, logits: Tensor, weights: Tensor) -> Tensor | None:
    """A term to add to the weighted sum of the tasks' losses (a scalar); None: there is none.

    It is a sum over rows, as the losses are, so that it adds up over micro-batches and ranks. A model has one where a
    function is registered for its class: ``@auxiliary_loss.register``.

    Args:
        model: the dense network.
        logits: [B, T].
        weights: of the rows [B].
    """
    return None


@auxiliary_loss.register
def calibrator(model: AITM, logits: Tensor, weights: Tensor) -> Tensor | None:
    r"""AITM's calibrator: α · Σ_b w_b Σ_t max(p_t − p_parent, 0) (Xi et al., KDD 2021, section 3.4).

    It punishes a task that is likelier than what it needs; w are the row weights, 1/B on one rank. It counts the tasks
    whose parent is trained and whose relation is `given` and no others: with `given_not` the two exclude each other, so
    p_t > p_parent is no mistake, and where the recipe names no parent nobody says that one needs the other.
    """
    if not model.calibrated or not model.config.alpha:
        return None
    tasks, parents = map(list, zip(*model.calibrated, strict=True))
    p = logits.sigmoid()
    excess = torch.relu(p[:, tasks] - p[:, parents]).sum(1)
    return model.config.alpha * (weights * excess).sum()


@auxiliary_loss.register
def of_backbone(model: PEPNet, logits: Tensor, weights: Tensor) -> Tensor | None:
    """PEPNet's is its backbone's."""
    return auxiliary_loss(model.backbone, logits, weights)
