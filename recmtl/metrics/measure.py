"""The metrics of one task on all its rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from recmtl.metrics.auc import auc, fold_aucs, grouped_auc
from recmtl.metrics.entropy import entropy
from recmtl.metrics.jackknife import FOLDS, standard_error

BINS = 20
"""Bins of a calibration plot, as full as each other where predictions differ."""
CHUNK = 2**18
"""Rows that are worked on in float64 at once."""

Values = dict[str, Any]
"""The metrics of one task by name: numbers, None where undefined, and the list ``auc_folds``."""
Bins = dict[str, list[float]]
"""The calibration bins of one task: ``rows``, mean ``prediction`` and ``positives`` of each, by rising prediction."""


def measure(
    logits: np.ndarray,
    labels: np.ndarray,
    oracle: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    folds: np.ndarray | None = None,
) -> tuple[Values, Bins]:
    """The metrics of one task.

    - auc: area under the ROC curve; null when the labels hold one class only.
    - auc_se: its standard error (`recmtl.metrics.jackknife`); null where a class is missing without one of the folds.
    - auc_folds: the AUC without the rows of each fold (null for a fold that has none); null where auc_se is.
    - gauc: mean of the AUC within each user, weighted by the user's rows; users with one class, and rows that belong
      to no user, are left out.
    - oracle_auc: AUC of the true probabilities, where the data has them.
    - logloss: mean binary cross entropy, in nats. logloss_se: its standard error.
    - ne: normalised entropy, logloss over the entropy of the base rate (He et al., ADKDD 2014, section 3).
    - calibration: mean prediction over the base rate; null without positives.
    - base_rate: fraction of positive labels. positives: their number. rows: rows measured.

    Args:
        logits: float32 [n].
        labels: bool [n].
        oracle: true probabilities [n]; NaN: unknown.
        groups: user of every row [n], counted from 0; negative: none.
        folds: fold of every row, uint8 [n]; None: no standard errors.

    Returns:
        The metrics; and the calibration bins, cut at quantiles of the predictions: equal ones share a bin.
    """
    rows, base_rate = len(labels), labels.mean().item()
    folds = np.zeros(rows, np.uint8) if folds is None else folds  # of a single fold there is no error
    edges = np.unique(_quantiles(logits, BINS))
    loss_of_fold = np.zeros(FOLDS)
    counts, sums, positives = np.zeros((3, len(edges) + 1))
    for start in range(0, rows, CHUNK):
        some = slice(start, start + CHUNK)
        x, y = torch.from_numpy(logits[some]).double(), torch.from_numpy(labels[some]).double()
        losses = F.binary_cross_entropy_with_logits(x, y, reduction="none").numpy()
        loss_of_fold += np.bincount(folds[some], losses, minlength=FOLDS)
        bins = np.searchsorted(edges, logits[some], "right")
        for total, weights in ((counts, None), (sums, x.sigmoid().numpy()), (positives, y.numpy())):
            total += np.bincount(bins, weights, minlength=len(total))
    logloss, base_entropy = loss_of_fold.sum().item() / rows, entropy(base_rate)
    known = None if oracle is None else ~np.isnan(oracle)
    area, without = fold_aucs(logits, labels, folds)
    auc_folds = None if without is None else _numbers(without)
    metrics: Values = {
        "auc": area,
        "auc_se": None if auc_folds is None else standard_error(auc_folds),
        "auc_folds": auc_folds,
        "gauc": None if groups is None else _gauc(logits, labels, groups),
        "oracle_auc": None if oracle is None else auc(oracle[known], labels[known]),
        "logloss": logloss,
        "logloss_se": standard_error(_numbers(_means_without(loss_of_fold, folds))),
        "ne": logloss / base_entropy if base_entropy else None,
        "calibration": sums.sum().item() / rows / base_rate if base_rate else None,
        "base_rate": base_rate,
        "positives": int(positives.sum()),
        "rows": rows,
    }
    full = counts > 0
    return metrics, {
        "rows": counts[full].astype(int).tolist(),
        "prediction": (sums[full] / counts[full]).tolist(),
        "positives": positives[full].astype(int).tolist(),
    }


def _means_without(sums: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """The mean over the rows of all folds but one, for each; NaN for a fold without rows, or with all of them."""
    counts = np.bincount(folds, minlength=FOLDS)
    means = np.full(FOLDS, np.nan)
    some = (counts > 0) & (counts < len(folds))
    means[some] = (sums.sum() - sums[some]) / (len(folds) - counts[some])
    return means


def _numbers(values: np.ndarray) -> list[float | None]:
    """As JSON knows them: null for NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _gauc(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float | None:
    known = groups >= 0
    area, rows = grouped_auc(scores[known], labels[known], groups[known])
    return np.average(area, weights=rows).item() if len(area) else None


def _quantiles(values: np.ndarray, parts: int) -> np.ndarray:
    """The values that cut `values` into equal parts."""
    places = np.arange(1, parts) * len(values) // parts
    return np.partition(values, places)[places]
