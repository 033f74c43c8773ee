"""The metrics of one binary task on all its rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from recmtl.metrics.auc import auc, fold_aucs, grouped_auc
from recmtl.metrics.entropy import entropy
from recmtl.metrics.jackknife import FOLDS, standard_error
from recmtl.metrics.names import ALL
from recmtl.metrics.sums import chunks, mass_of, means_without, numbers, quantiles, times
from recmtl.metrics.weighted_auc import weighted_auc, weighted_fold_aucs, weighted_grouped_auc

BINS = 20
"""Bins of a calibration plot, of equal weight where predictions differ."""

Values = dict[str, Any]
"""The metrics of one task by name: numbers, None where undefined, and the list ``auc_folds``."""
Bins = dict[str, list[float]]
"""The calibration bins of one task by rising prediction: ``rows``, mean ``prediction`` and mean ``label`` of each, and
of a binary task ``positives``."""


def measure(
    logits: np.ndarray,
    labels: np.ndarray,
    oracle: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    include: Collection[str] = ALL,
) -> tuple[Values, Bins]:
    """The metrics of one binary task on the rows that have a label. With weights every mean is a weighted one.

    - auc: area under the ROC curve; null when the labels hold one class only.
    - auc_se: its standard error (`recmtl.metrics.jackknife`); null where a class is missing without one of the folds.
    - auc_folds: the AUC without the rows of each fold (null for a fold that has none); null where auc_se is.
    - gauc: mean of the AUC within each user, weighted by the user's rows; users with one class, and rows that belong
      to no user, are left out.
    - oracle_auc: AUC of the true probabilities, where the data has them.
    - logloss: mean binary cross entropy, in nats. logloss_se: its standard error.
    - ne: normalised entropy, logloss over the entropy of the base rate (He et al., ADKDD 2014, section 3).
    - calibration: mean prediction over the base rate; null without positives.
    - base_rate: fraction of positive labels. positives: their number. rows: rows measured. The latter two are counts,
      whatever the weights.

    Args:
        logits: float32 [n].
        labels: bool [n].
        oracle: true probabilities [n]; NaN: unknown.
        groups: user of every row [n], counted from 0; negative: none.
        folds: fold of every row, uint8 [n]; None: no standard errors.
        weights: of the rows, above 0 [n]; None: all 1.
        include: names of the metrics to measure; the others are null, logloss excepted.

    Returns:
        The metrics, all null and counts 0 where there are no rows; and the calibration bins, cut at quantiles of the
        predictions: equal ones share a bin.
    """
    rows = len(labels)
    if not rows:
        names = ("auc", "auc_se", "auc_folds", "gauc", "oracle_auc", "logloss", "logloss_se", "ne", "calibration")
        none: Values = dict.fromkeys((*names, "base_rate"))
        return {**none, "positives": 0, "rows": 0}, {"rows": [], "prediction": [], "positives": [], "label": []}
    folds = np.zeros(rows, np.uint8) if folds is None else folds  # of a single fold there is no error
    edges = np.unique(quantiles(logits, BINS, weights))
    loss_of_fold = np.zeros(FOLDS)
    counts, sums, positives = np.zeros((3, len(edges) + 1))
    masses, labelled = (counts, positives) if weights is None else np.zeros((2, len(edges) + 1))
    for some in chunks(rows):
        x, y = torch.from_numpy(logits[some]).double(), torch.from_numpy(labels[some]).double()
        mass = mass_of(weights, some)
        losses = F.binary_cross_entropy_with_logits(x, y, reduction="none").numpy()
        loss_of_fold += np.bincount(folds[some], times(losses, mass), minlength=FOLDS)
        bins = np.searchsorted(edges, logits[some], "right")
        by_bin = [(counts, None), (sums, times(x.sigmoid().numpy(), mass)), (positives, y.numpy())]
        if mass is not None:
            by_bin += [(masses, mass), (labelled, y.numpy() * mass)]
        for total, values in by_bin:
            total += np.bincount(bins, values, minlength=len(total))
    masses_of_fold = np.bincount(folds, weights, minlength=FOLDS)
    mass_of_all = masses_of_fold.sum().item()
    base_rate = labels.mean().item() if weights is None else labelled.sum().item() / mass_of_all
    logloss, base_entropy = loss_of_fold.sum().item() / mass_of_all, entropy(base_rate)
    area, without = _fold_aucs(logits, labels, folds, weights) if "auc" in include else (None, None)
    auc_folds = None if without is None else numbers(without)
    is_calibrated = "calibration" in include and base_rate > 0
    metrics: Values = {
        "auc": area,
        "auc_se": None if auc_folds is None else standard_error(auc_folds),
        "auc_folds": auc_folds,
        "gauc": None if groups is None or "gauc" not in include else _gauc(logits, labels, groups, weights),
        "oracle_auc": _oracle_auc(oracle, labels, weights) if "oracle_auc" in include else None,
        "logloss": logloss,
        "logloss_se": standard_error(numbers(means_without(loss_of_fold, masses_of_fold))),
        "ne": logloss / base_entropy if base_entropy and "ne" in include else None,
        "calibration": sums.sum().item() / mass_of_all / base_rate if is_calibrated else None,
        "base_rate": base_rate,
        "positives": int(positives.sum()),
        "rows": rows,
    }
    full = counts > 0
    return metrics, {
        "rows": counts[full].astype(int).tolist(),
        "prediction": (sums[full] / masses[full]).tolist(),
        "positives": positives[full].astype(int).tolist(),
        "label": (labelled[full] / masses[full]).tolist(),
    }


def _fold_aucs(
    scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray | None
) -> tuple[float | None, np.ndarray | None]:
    if weights is None:
        return fold_aucs(scores, labels, folds)
    return weighted_fold_aucs(scores, labels, folds, weights)


def _oracle_auc(oracle: np.ndarray | None, labels: np.ndarray, weights: np.ndarray | None) -> float | None:
    if oracle is None:
        return None
    known = ~np.isnan(oracle)
    if weights is None:
        return auc(oracle[known], labels[known])
    return weighted_auc(oracle[known], labels[known], weights[known])


def _gauc(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: np.ndarray | None) -> float | None:
    known = groups >= 0
    rows = scores[known], labels[known], groups[known]
    area, mass = grouped_auc(*rows) if weights is None else weighted_grouped_auc(*rows, weights[known])
    return np.average(area, weights=mass).item() if len(area) else None
