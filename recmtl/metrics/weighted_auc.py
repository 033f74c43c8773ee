r"""Area under the ROC curve of rows that weigh differently: a pair of rows counts the product of their weights.

    AUC = Σ_{positives i} Σ_{negatives j} w_i w_j ([s_i > s_j] + [s_i = s_j]/2) / (Σ_i w_i · Σ_j w_j)

A row of weight 2 is that row twice. The sums are in float64, where `recmtl.metrics.auc` counts in integers.
"""

from __future__ import annotations

import numpy as np

from recmtl.metrics.auc import grouped_keys, ordered_bits
from recmtl.metrics.jackknife import FOLDS


def weighted_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float | None:
    """As `recmtl.metrics.auc.auc`.

    Args:
        scores: [n], any monotone score.
        labels: bool [n].
        weights: above 0 [n].

    Returns:
        None where a class is missing.
    """
    positives, negatives = _Class(scores, weights, labels), _Class(scores, weights, ~labels)
    if not len(positives.keys) or not len(negatives.keys):
        return None
    return negatives.below(positives).sum().item() / (2 * positives.total * negatives.total)


def weighted_grouped_auc(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `recmtl.metrics.auc.grouped_auc`: the AUC within every group that has both classes.

    Args:
        scores: float32 [n].
        labels: bool [n].
        groups: integers [n] from 0 to 2^31.
        weights: above 0 [n].

    Returns:
        By group: AUC [G], weight of its rows [G].
    """
    keys = grouped_keys(groups, ordered_bits(scores))
    positives, negatives = _Class(keys, weights, labels), _Class(keys, weights, ~labels)
    group, first = np.unique(positives.keys >> np.uint64(32), return_index=True)
    if not len(group):
        return np.zeros(0), np.zeros(0)
    start, stop = (np.searchsorted(negatives.keys, (group + np.uint64(i)) << np.uint64(32)) for i in (0, 1))
    both = stop > start
    mass = np.add.reduceat(positives.weights, first)
    # Negatives of all earlier groups lie below every positive, too.
    wins = np.add.reduceat(negatives.below(positives), first) - 2 * mass * negatives.ends[start]
    of_negatives = negatives.ends[stop] - negatives.ends[start]
    return wins[both] / (2 * mass * of_negatives)[both], (mass + of_negatives)[both]


def weighted_fold_aucs(
    scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray
) -> tuple[float | None, np.ndarray | None]:
    """As `recmtl.metrics.auc.fold_aucs`, by the same sums over pairs: the AUC, and the AUC without each fold.

    Args:
        scores: float32 [n].
        labels: bool [n].
        folds: uint8 [n], below `FOLDS`.
        weights: above 0 [n].

    Returns:
        The AUC; float64 [FOLDS], NaN for a fold without rows. The latter is None where all rows are in one fold or a
        class is missing without one of the folds.
    """
    bits = ordered_bits(scores)
    positives, negatives = _Class(bits, weights, labels), _Class(bits, weights, ~labels)
    if not len(positives.keys) or not len(negatives.keys):
        return None, None
    wins = negatives.below(positives)
    losses = 2 * positives.total * negatives.weights - positives.below(negatives)
    total = wins.sum().item()
    # By fold: the wins of its positives, the losses of its negatives, and of both together those within.
    of_positives, of_negatives = folds[labels][positives.order], folds[~labels][negatives.order]
    without = total - np.bincount(of_positives, wins, FOLDS) - np.bincount(of_negatives, losses, FOLDS)
    keys = grouped_keys(folds, bits)
    positives_by_fold, negatives_by_fold = _Class(keys, weights, labels), _Class(keys, weights, ~labels)
    fold = (positives_by_fold.keys >> np.uint64(32)).astype(np.intp)
    mass = np.bincount(of_positives, positives.weights, FOLDS), np.bincount(of_negatives, negatives.weights, FOLDS)
    without += np.bincount(fold, negatives_by_fold.below(positives_by_fold), FOLDS)
    # Negatives of all earlier folds lie below every positive, too.
    without -= 2 * (np.cumsum(mass[1]) - mass[1]) * mass[0]
    rows = np.bincount(of_positives, minlength=FOLDS), np.bincount(of_negatives, minlength=FOLDS)
    filled = rows[0] + rows[1] > 0
    area = total / (2 * positives.total * negatives.total)
    if not ((rows[0] < len(positives.keys)) & (rows[1] < len(negatives.keys)))[filled].all():
        return area, None
    aucs = np.full(FOLDS, np.nan)
    pairs = (positives.total - mass[0]) * (negatives.total - mass[1])
    aucs[filled] = without[filled] / (2 * pairs[filled])
    return area, aucs


class _Class:
    """The rows of one class by rising key, with their weights.

    Args:
        keys: of all rows [n].
        weights: of all rows [n].
        inside: which rows are of the class, bool [n].
    """

    def __init__(self, keys: np.ndarray, weights: np.ndarray, inside: np.ndarray) -> None:
        keys = keys[inside]
        self.order = np.argsort(keys, kind="stable")
        self.keys, self.weights = keys[self.order], weights[inside][self.order].astype(np.float64)
        self.ends = np.concatenate(([0.0], np.cumsum(self.weights)))
        """Weight of the first 0, 1, … rows."""

    @property
    def total(self) -> float:
        """Weight of all rows."""
        return self.ends[-1].item()

    def below(self, other: _Class) -> np.ndarray:
        """For every row of the other class: its weight times that of the rows below it here, twice, and of equals."""
        ends = self.ends[np.searchsorted(self.keys, other.keys, "left")]
        ends += self.ends[np.searchsorted(self.keys, other.keys, "right")]
        return ends * other.weights
