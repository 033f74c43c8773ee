r"""Area under the ROC curve: the probability that a positive scores above a negative, ties counted half.

    AUC = Σ_{positives i} Σ_{negatives j} w_i w_j ([s_i > s_j] + [s_i = s_j]/2) / (Σ_i w_i · Σ_j w_j)

the Mann-Whitney statistic, counted in integers where rows do not weigh. A row of weight 2 is that row twice.

It is counted a range of scores at a time (`recmtl.metrics.ranges`), and so is the AUC without the rows of each fold.
Let W be the pairs that the positive wins, ties counted half. Without fold g they are

    W_(g) = W − wins(positives in g, all negatives) − wins(all positives, negatives in g) + wins(within g)

Each of the three is a sum over ranges: of the pairs within the range, which the rank that has its rows counts, and of
those with a negative in a lower range, the product of two numbers of rows. So two sorts serve all folds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recmtl.metrics.jackknife import FOLDS, numbers, standard_error
from recmtl.metrics.names import Values
from recmtl.metrics.ranges import SortedRows, high_bits, keys_of, low_bits
from recmtl.metrics.rows import Block, RowMetric, Rows


class AUC(RowMetric):
    """The AUC of the logits, the AUC without each fold, and the standard error that these give.

    Values:
        auc: null where a class is missing.
        auc_se: its standard error (`recmtl.metrics.jackknife`); null where a class is missing without one of the folds.
        auc_folds: the AUC without the rows of each fold, null for a fold that has none; null where auc_se is.
    """

    higher_is_better = True

    def measure(self, rows: Rows) -> Values:
        """Exchanges the rows by ranges of their score."""
        area, without = fold_aucs(rows, lambda block: block.logits)
        folds = None if without is None else numbers(without)
        return {"auc": area, "auc_se": None if folds is None else standard_error(folds), "auc_folds": folds}


class OracleAUC(RowMetric):
    """The AUC of the true probabilities, over the rows where they are known: what a model can reach at best.

    Values:
        oracle_auc: null where a class is missing, and where no row has a true probability.
    """

    def measure(self, rows: Rows) -> Values:
        """Exchanges the rows by ranges of their true probability."""
        if not rows.have("oracle"):
            return {"oracle_auc": None}
        known = [block.take(~np.isnan(block.oracle)) for block in rows.blocks if block.oracle is not None]
        rows = Rows(self.context, known)
        return {"oracle_auc": fold_aucs(rows, lambda block: block.oracle)[0]}  # type: ignore[arg-type,return-value]


def fold_aucs(rows: Rows, scores: Callable[[Block], np.ndarray]) -> tuple[float | None, np.ndarray | None]:
    """The AUC, and the AUC without the rows of each fold.

    Args:
        rows: of all ranks.
        scores: of a block, float32 [n].

    Returns:
        The AUC, None where a class is missing; float64 [FOLDS], NaN for a fold without rows. The latter is None where
        all rows are in one fold or a class is missing without one of the folds.
    """
    by_kind = np.zeros(2 * FOLDS, np.int64)
    for block in rows.blocks:
        by_kind += np.bincount(_kinds(block), minlength=2 * FOLDS)
    counts = rows.context.sum_on_host(by_kind).reshape(FOLDS, 2)
    if not counts.sum(0).all():
        return None, None
    kinds = ((keys_of(scores(block), _kinds(block)), block.weights) for block in rows.blocks)
    ordered = SortedRows(rows.context, kinds, weighted=rows.weighted)
    cuts = ordered.cuts(rows.count)
    # By range, fold and class: the rows' weight.
    mass = ordered.tally(cuts, 2 * FOLDS).reshape(-1, FOLDS, 2)
    negatives, positives = mass[..., 0], mass[..., 1]
    # By range and fold: twice the wins of its positives, of all positives over its negatives, and of its positives over
    # its negatives, each within the range.
    within = np.zeros((3, len(cuts), FOLDS), mass.dtype)
    for place, keys, weights in ordered.exchange(cuts):
        within[:, place] = wins_by_fold(keys, weights)
    within = rows.context.sum_on_host(within)
    of_positives, of_negatives, of_both = within
    # Where all scores are the same every pair is a tie.
    for place in np.flatnonzero(cuts.single):
        of_positives[place] = positives[place] * negatives[place].sum()
        of_negatives[place] = negatives[place] * positives[place].sum()
        of_both[place] = positives[place] * negatives[place]
    # A positive wins over the negatives of all lower ranges, too.
    of_positives += 2 * positives * _before(negatives.sum(1))[:, None]
    of_negatives += 2 * negatives * _before(positives.sum(1)[::-1])[::-1, None]
    of_both += 2 * positives * _before(negatives)
    total = of_positives.sum().item()
    of_fold, of_all = mass.sum(0), mass.sum((0, 1))
    area = total / (2 * of_all[1].item() * of_all[0].item())
    filled = counts.sum(1) > 0
    if not (counts < counts.sum(0))[filled].all():
        return area, None
    without = total - of_positives.sum(0) - of_negatives.sum(0) + of_both.sum(0)
    pairs = (of_all[1] - of_fold[:, 1]) * (of_all[0] - of_fold[:, 0])
    aucs = np.full(FOLDS, np.nan)
    aucs[filled] = without[filled] / (2 * pairs[filled])
    return area, aucs


def wins_by_fold(keys: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Twice the weight of the pairs that a positive wins, ties counted half, among rows with all scores in one place.

    Args:
        keys: ordered bits of the score, then fold and class (2 · fold + label), rising [n].
        weights: int64 or float64 [n].

    Returns:
        By fold [FOLDS]: wins of its positives, wins over its negatives, and wins of its positives over its negatives.
    """
    bits, kinds = high_bits(keys), low_bits(keys)
    positive = (kinds & 1).astype(bool)
    folds = kinds >> 1
    positives = Weighed(bits[positive], weights[positive])
    negatives = Weighed(bits[~positive], weights[~positive])
    of_positives, of_negatives, of_both = found = np.zeros((3, FOLDS), weights.dtype)
    np.add.at(of_positives, folds[positive], negatives.below(positives))
    losses = 2 * positives.total * negatives.weights - positives.below(negatives)
    np.add.at(of_negatives, folds[~positive], losses)
    order = np.argsort(folds.astype(np.uint8), kind="stable")  # by fold, then still by score
    positive, folds, weights = positive[order], folds[order], weights[order]
    by_fold = (folds.astype(np.uint64) << np.uint64(32)) | bits[order]
    positives = Weighed(by_fold[positive], weights[positive])
    negatives = Weighed(by_fold[~positive], weights[~positive])
    np.add.at(of_both, folds[positive], negatives.below(positives))
    # Negatives of all earlier folds lie below every positive, too.
    mass = np.zeros((2, FOLDS), weights.dtype)
    np.add.at(mass, (positive.astype(np.intp), folds), weights)
    of_both -= 2 * mass[1] * _before(mass[0])
    return found[0], found[1], found[2]


class Weighed:
    """Rows of one class by rising key, with their weights.

    Args:
        keys: rising [n].
        weights: int64 or float64 [n].
    """

    def __init__(self, keys: np.ndarray, weights: np.ndarray) -> None:
        self.keys, self.weights = keys, weights
        self.ends = np.concatenate(([weights.dtype.type(0)], np.cumsum(weights)))
        """Weight of the first 0, 1, … rows."""

    @property
    def total(self) -> int | float:
        """Weight of all rows."""
        return self.ends[-1].item()

    def below(self, other: Weighed) -> np.ndarray:
        """For every row of the other class: its weight times that of the rows below it here, twice, and of equals."""
        ends = self.ends[np.searchsorted(self.keys, other.keys, "left")]
        ends += self.ends[np.searchsorted(self.keys, other.keys, "right")]
        return ends * other.weights


def _kinds(block: Block) -> np.ndarray:
    """What pairs are counted by: 2 · fold + label, uint8 [n]."""
    kinds = block.folds_or_one() * np.uint8(2)
    kinds += block.labels.view(np.uint8)
    return kinds


def _before(values: np.ndarray) -> np.ndarray:
    """Sum of the values before each, along the first axis."""
    return np.cumsum(values, axis=0) - values
