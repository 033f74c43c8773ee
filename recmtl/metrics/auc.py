"""Area under the ROC curve, every row counted once: of all rows, within users, and without the rows of each fold.

Counts are integers. `recmtl.metrics.weighted_auc` has the same for rows that weigh differently.
"""

from __future__ import annotations

import numpy as np

from recmtl.metrics.jackknife import FOLDS


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    r"""Area under the ROC curve: the probability that a positive scores above a negative, ties counted half.

    AUC = (Σ_{positives} #(negatives below) + #(negatives equal)/2) / (P·N), the Mann-Whitney statistic, counted in
    integers. Sorting the two classes by themselves needs no index of the rows.

    Args:
        scores: [n], any monotone score.
        labels: bool [n].

    Returns:
        None where a class is missing.
    """
    positives, negatives = _sorted_classes(scores, labels)
    if not len(positives) or not len(negatives):
        return None
    return _wins(positives, negatives).sum().item() / (2 * len(positives) * len(negatives))


def grouped_auc(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same within every group that has both classes.

    Args:
        scores: float32 [n].
        labels: bool [n].
        groups: integers [n] from 0 to 2^31.

    Returns:
        By group: AUC [G], rows [G].
    """
    positives, negatives = _sorted_classes(grouped_keys(groups, ordered_bits(scores)), labels)
    group, first, count = np.unique(positives >> np.uint64(32), return_index=True, return_counts=True)
    start, stop = (np.searchsorted(negatives, (group + np.uint64(i)) << np.uint64(32)) for i in (0, 1))
    wins = np.add.reduceat(_wins(positives, negatives), first) if len(group) else first
    negative_count = stop - start
    both = negative_count > 0
    # Negatives of all earlier groups lie below every positive, too.
    area = (wins - 2 * start * count)[both] / (2 * count * negative_count)[both]
    return area, (count + negative_count)[both]


def fold_aucs(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[float | None, np.ndarray | None]:
    r"""The AUC, and the AUC without the rows of each fold, counted in integers.

    Let W be the pairs of a positive and a negative that the positive wins, ties counted half. Without fold g they are

        W_(g) = W − wins(positives in g, all negatives) − wins(all positives, negatives in g) + wins(within g)

    and all of these are sums, fold by fold, over sorted arrays: two sorts serve all folds.

    Args:
        scores: float32 [n].
        labels: bool [n].
        folds: uint8 [n], below `FOLDS`.

    Returns:
        The AUC as `auc` gives it; float64 [FOLDS], NaN for a fold without rows. The latter is None where all rows are
        in one fold or a class is missing without one of the folds.
    """
    bits = ordered_bits(scores)
    positives, positive_folds = _sorted_with_folds(bits[labels], folds[labels])
    negatives, negative_folds = _sorted_with_folds(bits[~labels], folds[~labels])
    del bits
    p, n = len(positives), len(negatives)
    if not p or not n:
        return None, None
    # A positive wins against the negatives before `left`, and half against those from there to before `right`.
    left, right = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
    wins = left + right
    total = wins.sum().item()
    # And so a negative at i is not beaten by the positives whose `left` (for half a win: `right`) is at most i.
    ends = np.bincount(left, minlength=n + 1)
    ends += np.bincount(right, minlength=n + 1)
    losses = np.cumsum(ends, out=ends)[:n]
    np.subtract(2 * p, losses, out=losses)
    of_fold = np.bincount(positive_folds, minlength=FOLDS), np.bincount(negative_folds, minlength=FOLDS)
    order = np.argsort(positive_folds, kind="stable")  # by fold, then still by score
    without = total - _sums(wins[order], of_fold[0])
    positives = grouped_keys(positive_folds[order], positives[order])
    order = np.argsort(negative_folds, kind="stable")
    without -= _sums(losses[order], of_fold[1])
    del wins, losses, ends, left, right
    negatives = grouped_keys(negative_folds[order], negatives[order])
    # Negatives of all earlier folds lie below every positive, too.
    without += _sums(_wins(positives, negatives), of_fold[0])
    without -= 2 * (np.cumsum(of_fold[1]) - of_fold[1]) * of_fold[0]
    filled = of_fold[0] + of_fold[1] > 0
    pairs = (p - of_fold[0]) * (n - of_fold[1])
    aucs = np.full(FOLDS, np.nan)
    if pairs[filled].all():
        aucs[filled] = without[filled] / (2 * pairs[filled])
    return total / (2 * p * n), aucs if pairs[filled].all() else None


def _sorted_with_folds(bits: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores' ordered bits, sorted, and their folds: one sort of both packed together needs no index of the rows."""
    packed = bits.astype(np.uint64)
    packed <<= np.uint64(8)
    packed |= folds
    packed.sort()
    return (packed >> np.uint64(8)).astype(np.uint32), packed.astype(np.uint8)


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums of consecutive values, so many at a time, in integers; overwrites `values`, of which it needs one."""
    ends = np.cumsum(counts)
    np.cumsum(values, out=values)
    return np.diff(np.where(ends > 0, values[ends - 1], 0), prepend=0)


def _sorted_classes(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    positives, negatives = values[labels], values[~labels]
    positives.sort()
    negatives.sort()
    return positives, negatives


def _wins(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """For every positive twice the number of negatives below it, plus those equal to it (both sorted)."""
    wins = np.searchsorted(negatives, positives, "left")
    wins += np.searchsorted(negatives, positives, "right")
    return wins


def grouped_keys(groups: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """uint64 [n] that order rows by group, then by the ordered bits of their score."""
    keys = groups.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= bits
    return keys


def ordered_bits(scores: np.ndarray) -> np.ndarray:
    """float32 numbers as uint32 in the same order: of negative ones all bits are turned round, of others the sign."""
    bits = (scores + np.float32(0)).view(np.uint32)  # −0 becomes 0
    flips = (bits.view(np.int32) >> 31).view(np.uint32)
    flips |= np.uint32(2**31)
    bits ^= flips
    return bits
