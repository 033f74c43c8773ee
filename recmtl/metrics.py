"""Metrics of one task over every row once, exact on any number of ranks."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


def grouped_auc(scores: Tensor, labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Area under the ROC curve within every group, ties counted half (the Mann-Whitney statistic).

    AUC = (Σ_{positives} rank − P(P + 1)/2) / (P·N), with mean ranks for equal scores, in float64. torchmetrics'
    own AUC adds up in float32, which miscounts past 2^24 positives, and knows no groups.

    Args:
        scores: [n], any monotone score.
        labels: [n], 0 or 1.
        groups: [n], integers.

    Returns:
        For every group with both classes: AUC [G] (float64), positives [G], rows [G].
    """
    # Sort by group, then by score: a stable sort by the second key after the first.
    order = torch.argsort(scores, stable=True)
    order = order[torch.argsort(groups[order], stable=True)]
    scores, labels, groups = scores[order], labels[order].double(), groups[order]
    place = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)

    new_group = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    new_group[1:] = groups[1:] != groups[:-1]
    new_tie = new_group.clone()
    new_tie[1:] |= scores[1:] != scores[:-1]
    tie, group = new_tie.cumsum(0) - 1, new_group.cumsum(0) - 1
    tie_count = torch.bincount(tie)
    mean_place = (tie_count.cumsum(0) - (tie_count - 1) / 2).double()[tie]

    rows = torch.bincount(group).double()
    start = place[new_group] - 1
    rank = mean_place - start[group]
    positives = torch.zeros_like(rows).index_add_(0, group, labels)
    rank_sum = torch.zeros_like(rows).index_add_(0, group, labels * rank)
    negatives = rows - positives
    both = (positives > 0) & (negatives > 0)
    auc = (rank_sum - positives * (positives + 1) / 2)[both] / (positives * negatives)[both]
    return auc, positives[both], rows[both]


def entropy(rate: float) -> float:
    """Log loss, in nats, of predicting the base rate for every row: −p ln p − (1 − p) ln(1 − p)."""
    return -sum(p * math.log(p) for p in (rate, 1 - rate) if p > 0)


class TaskMetrics(Metric):
    """Collects the logits and labels of one task and computes its row of the table.

    - auc: area under the ROC curve; null when the labels hold one class only.
    - gauc: mean of the AUC within each user, weighted by the user's rows; users with one class are left out.
    - oracle_auc: AUC of the true probabilities, where the data has them.
    - logloss: mean binary cross entropy, in nats.
    - ne: normalised entropy, logloss over the entropy of the base rate (He et al., ADKDD 2014, section 3).
    - calibration: mean prediction over the base rate; null without positives.
    - base_rate: fraction of positive labels. rows: rows measured.
    """

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]
    oracle: list[Tensor]
    group: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("logits", "labels", "oracle", "group"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, oracle: Tensor | None = None, group: Tensor | None = None) -> None:
        """Add rows: logits [n], labels [n], true probabilities [n] (NaN: unknown), group [n]."""
        self.logits.append(logits)
        self.labels.append(labels)
        if oracle is not None:
            self.oracle.append(oracle)
        if group is not None:
            self.group.append(group)

    def compute(self) -> dict[str, float | int | None]:
        """The metrics by name."""
        logits, labels = _joined(self.logits), _joined(self.labels)
        oracle, group = _joined(self.oracle), _joined(self.group)
        if logits is None or labels is None:
            return {}
        rows = len(labels)
        base_rate = labels.double().mean().item()
        logloss = F.binary_cross_entropy_with_logits(logits.double(), labels.double()).item()
        base_entropy = entropy(base_rate)
        return {
            "auc": _auc(logits, labels),
            "gauc": None if group is None else _gauc(logits, labels, group),
            "oracle_auc": None if oracle is None else _oracle_auc(oracle, labels),
            "logloss": logloss,
            "ne": logloss / base_entropy if base_entropy else None,
            "calibration": logits.double().sigmoid().mean().item() / base_rate if base_rate else None,
            "base_rate": base_rate,
            "rows": rows,
        }


def _joined(state: list[Tensor] | Tensor) -> Tensor | None:
    """All rows of a state, which is a list of pieces, or one tensor after it was gathered; None: no rows."""
    rows = dim_zero_cat(state) if len(state) else None
    return rows if rows is not None and len(rows) else None


def _auc(scores: Tensor, labels: Tensor) -> float | None:
    auc, _, _ = grouped_auc(scores, labels, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))
    return auc.item() if len(auc) else None


def _gauc(scores: Tensor, labels: Tensor, groups: Tensor) -> float | None:
    auc, _, rows = grouped_auc(scores, labels, groups)
    return ((auc * rows).sum() / rows.sum()).item() if len(auc) else None


def _oracle_auc(oracle: Tensor, labels: Tensor) -> float | None:
    known = ~oracle.isnan()
    return _auc(oracle[known], labels[known])


class Metrics:
    """The metrics of several tasks.

    Args:
        tasks: their names, in the order of the logits.
        gauc: measure the AUC within groups, where rows have one.
        device: where the collected rows lie; those of all ranks must fit.
    """

    def __init__(self, tasks: list[str], *, gauc: bool, device: torch.device) -> None:
        self.gauc = gauc
        self.tasks = {name: TaskMetrics().to(device) for name in tasks}

    def update(
        self, logits: Tensor, labels: Tensor, weights: Tensor, oracle: Tensor | None, group: Tensor | None
    ) -> None:
        """Add a batch: logits, labels, oracle [B, T], weights and group [B]; rows with weight 0 are padding."""
        # Picking rows makes the host wait for a GPU: once, not once a task.
        real = (weights > 0).nonzero().squeeze(1)
        logits, labels = logits[real], labels[real]
        oracle = None if oracle is None else oracle[real]
        group = group[real] if self.gauc and group is not None else None
        for i, metric in enumerate(self.tasks.values()):
            metric.update(logits[:, i], labels[:, i], None if oracle is None else oracle[:, i], group)

    def compute(self) -> dict[str, dict[str, float | int | None]]:
        """Metrics by task, over the rows of all ranks."""
        with warnings.catch_warnings():
            # A rank whose part is all padding has nothing to add; torchmetrics takes that for a forgotten update.
            warnings.filterwarnings("ignore", message="The ``compute`` method")
            return {name: metric.compute() for name, metric in self.tasks.items()}
