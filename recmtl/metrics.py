"""Metrics of every task over every row once, exact on any number of ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from recmtl.distributed.ranks import Ranks
from recmtl.entropy import entropy
from recmtl.jackknife import FOLDS, folds_of, standard_error
from recmtl.schema import NO_USER

BINS = 20
"""Bins of a calibration plot, as full as each other where predictions differ."""
CHUNK = 2**18
"""Rows that are worked on in float64 at once."""
MIN_USERS = FOLDS
"""Where there are fewer users than that, rows are the sampling units: most folds would have no user."""

Values = dict[str, Any]
"""The metrics of one task by name: numbers, None where undefined, and the list ``auc_folds``."""
Bins = dict[str, list[float]]
"""The calibration bins of one task: ``rows``, mean ``prediction`` and ``positives`` of each, by rising prediction."""


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
    positives, negatives = _sorted_classes(_keys(groups, _ordered_bits(scores)), labels)
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
    bits = _ordered_bits(scores)
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
    positives = _keys(positive_folds[order], positives[order])
    order = np.argsort(negative_folds, kind="stable")
    without -= _sums(losses[order], of_fold[1])
    del wins, losses, ends, left, right
    negatives = _keys(negative_folds[order], negatives[order])
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


def _keys(groups: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """uint64 [n] that order rows by group, then by the ordered bits of their score."""
    keys = groups.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= bits
    return keys


def _ordered_bits(scores: np.ndarray) -> np.ndarray:
    """float32 numbers as uint32 in the same order: of negative ones all bits are turned round, of others the sign."""
    bits = (scores + np.float32(0)).view(np.uint32)  # −0 becomes 0
    flips = (bits.view(np.int32) >> 31).view(np.uint32)
    flips |= np.uint32(2**31)
    bits ^= flips
    return bits


def measure(
    logits: np.ndarray,
    labels: np.ndarray,
    oracle: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    folds: np.ndarray | None = None,
) -> tuple[Values, Bins]:
    """The metrics of one task.

    - auc: area under the ROC curve; null when the labels hold one class only.
    - auc_se: its standard error (`recmtl.jackknife`); null where a class is missing without one of the folds.
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


def _users(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] to the user of every row, counted from 0, −1 for none, int32 [n]; and what each user was called."""
    found = pa.array(group, mask=group == NO_USER).dictionary_encode()
    return found.indices.fill_null(-1).to_numpy(), found.dictionary.to_numpy()


def _quantiles(values: np.ndarray, parts: int) -> np.ndarray:
    """The values that cut `values` into equal parts."""
    places = np.arange(1, parts) * len(values) // parts
    return np.partition(values, places)[places]


class Metrics:
    """Collects logits and labels on the host and measures them on rank 0.

    A row takes 9 bytes a task, 8 for its group and 1 for its fold on its own rank, and some 60 on rank 0 while a task
    is measured.

    Args:
        tasks: their names, in the order of the logits.
        gauc: measure the AUC within groups, where rows have one.
        ranks: this process and the others.
    """

    def __init__(self, tasks: list[str], *, gauc: bool, ranks: Ranks) -> None:
        self.tasks, self.gauc, self.ranks = tasks, gauc, ranks
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.oracle: list[Tensor] = []
        self.group: list[Tensor] = []
        self.fold: list[Tensor] = []

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        rows: int,
        oracle: Tensor | None,
        group: Tensor | None,
        row_number: Tensor | None = None,
    ) -> None:
        """Add a batch; those after the first `rows` rows are padding.

        Args:
            logits: [B, T].
            labels: 0 or 1 [B, T].
            rows: how many are real.
            oracle: true probabilities [B, T], NaN where unknown.
            group: user of every row [B], `NO_USER` for none.
            row_number: place of every row in the split [B]; None: metrics without standard errors.
        """
        # Together, as every copy makes the host wait for a GPU.
        columns = [logits.float(), labels, *([] if oracle is None else [oracle])]
        parts = torch.cat([column[:rows] for column in columns], dim=1).cpu().T.split(len(self.tasks))
        self.logits.append(parts[0].contiguous())
        self.labels.append(parts[1].bool())
        self.oracle += [part.contiguous() for part in parts[2:]]
        if group is not None:
            self.group.append(group[:rows].cpu())
        if row_number is not None:
            self.fold.append(torch.from_numpy(folds_of(row_number[:rows].cpu().numpy())))

    def compute(self) -> tuple[dict[str, Values], dict[str, Bins]]:
        """Metrics and calibration bins by task over the rows of all ranks, the same on every rank."""
        group, folds = self._gather(self.group), self._gather(self.fold)
        users = None
        if group is not None:
            users, names = _users(group)
            if folds is not None and len(names) >= MIN_USERS:
                # Rows of one user resemble each other: a fold has all of a user's rows or none.
                folds = np.where(users < 0, folds, folds_of(names)[users])
        metrics: dict[str, Values] = {}
        bins: dict[str, Bins] = {}
        for i, task in enumerate(self.tasks):
            states = (self.logits, self.labels, self.oracle)
            logits, labels, oracle = (self._gather([part[i] for part in state]) for state in states)
            if logits is not None and labels is not None:
                metrics[task], bins[task] = measure(logits, labels, oracle, users if self.gauc else None, folds)
        return self.ranks.first(lambda: (metrics, bins))

    def _gather(self, parts: list[Tensor]) -> np.ndarray | None:
        """Rows of all ranks on rank 0; None elsewhere, and where the data has no such column."""
        rows = self.ranks.gather_rows(torch.cat(parts)) if parts else None
        return None if rows is None else rows.numpy()
