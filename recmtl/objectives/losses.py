"""The losses of the tasks' logits, and what a model's paper adds to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

import torch
from torch import Tensor
from torch.nn import functional as F

from recmtl.models import Model
from recmtl.models.aitm import AITM
from recmtl.models.escm2 import ESCM2
from recmtl.models.esmm import ESMM
from recmtl.models.pepnet import PEPNet
from recmtl.schema import Task


def task_losses(logits: Tensor, labels: Tensor, weights: Tensor, tasks: Sequence[Task]) -> Tensor:
    r"""Σ_b w_{b,t} · ℓ_t(z_{b,t}, y_{b,t}) for every task.

    With z the logit and y the label, ℓ is

    - binary: BCE(z, y) = −y ln σ(z) − (1 − y) ln(1 − σ(z)).
    - regression: (z − v)², or Huber's loss with δ = 1: (z − v)²/2 where |z − v| < 1, else |z − v| − 1/2 (Huber, 1964).
      v is the label after its transform, standardised by mean and deviation of the training labels.
    - duration: −(y/μ) ln σ(z) − ln(1 − σ(z)), μ the mean training label. It is the weighted logistic regression of
      Covington et al., RecSys 2016, section 4.2, with every row as a negative of weight 1 and as a positive of weight
      y/μ. So the odds e^z that minimise it are exactly the mean of y/μ, where the paper's, which count a watched
      video as a positive alone, are nearly so for rare clicks.

    Args:
        logits: [B, T].
        labels: [B, T]; NaN where there is none, with weight 0.
        weights: [B, T], 0 for padding, for which labels are missing and else as `TrainModule` normalises them.
        tasks: in the order of the logits.

    Returns:
        [T]; in nats for binary and duration tasks, without a unit for regression.
    """
    labels = labels.nan_to_num(0.0)
    if all(task.kind == "binary" for task in tasks):
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    else:
        columns = zip(logits.unbind(1), labels.unbind(1), tasks, strict=True)
        losses = torch.stack([row_losses(z, y, task) for z, y, task in columns], dim=1)
    return (losses * weights).sum(0)


def row_losses(z: Tensor, y: Tensor, task: Task) -> Tensor:
    """ℓ_t(z_b, y_b) of every row [B], as `task_losses` has it, from logits and labels [B] of one task."""
    if task.kind == "binary":
        return F.binary_cross_entropy_with_logits(z, y, reduction="none")
    if task.kind == "duration":
        return y / task.mean * F.softplus(-z) + F.softplus(z)
    target = y.sign() * y.abs().log1p() if task.transform == "log1p" else y
    target = (target - task.mean) / task.std
    if task.loss == "huber":
        return F.huber_loss(z, target, reduction="none")
    return (z - target).square()


@singledispatch
def learned_labels(model: Model, labels: Tensor) -> Tensor:
    """The labels [B, T] that the losses compare `learned_logits` with; NaN where there is none."""
    return labels


@singledispatch
def learned_logits(model: Model, logits: Tensor) -> Tensor:
    """The logits [B, T] that the losses compare with `learned_labels`."""
    return logits


@learned_labels.register
def joint_labels(model: ESMM, labels: Tensor) -> Tensor:
    """Whether a task happened together with all that it needs: a task whose parent shuts it out did not happen.

    So a conversion label that only clicked rows have teaches the joint probability over all rows, as one that is 0 in
    rows without a click does (Ma et al., SIGIR 2018, section 2.3).
    """
    joint = list(labels.unbind(1))
    for task in model.order:
        parent = model.parents[task]
        if parent is not None:
            closed = 1.0 if model.inputs.tasks[task].relation == "given_not" else 0.0
            joint[task] = torch.where(joint[task].isnan() & (joint[parent] == closed), 0.0, joint[task])
    return torch.stack(joint, dim=1)


@learned_logits.register
def joint_logits(model: ESMM, logits: Tensor) -> Tensor:
    """ESMM's losses are on joint probabilities, never on a conditional one alone."""
    return model.joint_logits(logits)


@singledispatch
def auxiliary_loss(model: Model, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor | None:
    """A term to add to the weighted sum of the tasks' losses (a scalar); None: there is none.

    It is a sum over rows, as the losses are, so that it adds up over micro-batches and ranks. A model has one where a
    function is registered for its class: ``@auxiliary_loss.register``.

    Args:
        model: the dense network.
        outputs: the tasks' logits, and what the model gives in training beside them [B, T + R].
        labels: those that the losses learn, [B, T], NaN where there is none.
        weights: of rows and tasks, normalised as for `task_losses`, [B, T].
    """
    return None


@auxiliary_loss.register
def calibrator(model: AITM, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor | None:
    r"""AITM's calibrator: α · Σ_b Σ_t w_{b,t} max(p_t − p_parent, 0) (Xi et al., KDD 2021, section 3.4).

    It punishes a task that is likelier than what it needs. w are the weights of the task's own loss, 1/B where all
    rows have a label and weigh the same: a row counts here where it counts there. It counts the tasks whose parent is
    trained and whose relation is `given` and no others: with `given_not` the two exclude each other, so p_t > p_parent
    is no mistake, and where the recipe names no parent nobody says that one needs the other. Neither does it count a
    task whose label is conditional: p(t | parent) may be larger than p(parent).
    """
    tasks, parents = model.calibrated
    if not len(tasks) or not model.config.alpha:
        return None
    p = outputs.sigmoid()
    excess = torch.relu(p[:, tasks] - p[:, parents])
    return model.config.alpha * (weights[:, tasks] * excess).sum()


@auxiliary_loss.register
def counterfactual(model: ESCM2, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor | None:
    r"""ESCM²'s loss of conditional probabilities, had the parent happened in every row (section 4 of the paper).

    For a task with a parent, with o = 1 where the parent happened and else 0, e = BCE(σ(b), y) the error of its
    conditional probability there, p = max(p(parent), clip) without gradient, and w the weights of the task's own loss:
        ips: λ Σ_b w o e / p;
        dr:  λ Σ_b w (ê + o (e − ê) / p) + λ Σ_b w o (e − ê)² / p, the last sum with e held constant: it trains ê.
    For `given_not` the parent's not happening takes the place of its happening.

    E[o / p] = 1 where p is right, so the mean of either is that of e over all rows, if what makes the parent likely is
    what the model sees; dr also has it where ê is right. p is the product along the chain, for a parent that has one.
    """
    if not model.training or not model.links:
        return None
    tasks = len(model.parents)
    logits, conditional, imputed = outputs.tensor_split((tasks, tasks + len(model.links)), dim=1)
    with torch.no_grad():
        p = model.joint_logits(logits).sigmoid()[:, model.linked_parents]
        p = torch.where(model.happened > 0, p, 1 - p).clamp(min=model.config.clip)
        inverse = (labels[:, model.linked_parents] == model.happened) / p
    labels, weights = labels[:, model.linked].nan_to_num(0.0), weights[:, model.linked]
    errors = F.binary_cross_entropy_with_logits(conditional, labels, reduction="none")
    if model.imputers is None:
        losses = errors * inverse
    else:
        losses = imputed + (errors - imputed) * inverse + (errors.detach() - imputed).square() * inverse
    return model.config.counterfactual * (weights * losses).sum()


@auxiliary_loss.register
def of_backbone(model: PEPNet, outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor | None:
    """PEPNet's is its backbone's."""
    return auxiliary_loss(model.backbone, outputs, labels, weights)


@learned_labels.register
def labels_of_backbone(model: PEPNet, labels: Tensor) -> Tensor:
    """PEPNet's are its backbone's."""
    return learned_labels(model.backbone, labels)


@learned_logits.register
def logits_of_backbone(model: PEPNet, logits: Tensor) -> Tensor:
    """PEPNet's are its backbone's."""
    return learned_logits(model.backbone, logits)
