"""Metrics of every task over every row once, exact on any number of ranks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from recmtl.distributed.ranks import Ranks
from recmtl.entropy import entropy

BINS = 20
"""Bins of a calibration plot, as full as each other where predictions differ."""
CHUNK = 2**18
"""Rows that are worked on in float64 at once."""

Values = dict[str, float | int | None]
"""The metrics of one task by name."""
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
    positives, negatives = _sorted_classes(_keys(scores, groups), labels)
    group, first, count = np.unique(positives >> np.uint64(32), return_index=True, return_counts=True)
    start, stop = (np.searchsorted(negatives, (group + np.uint64(i)) << np.uint64(32)) for i in (0, 1))
    wins = np.add.reduceat(_wins(positives, negatives), first) if len(group) else first
    negative_count = stop - start
    both = negative_count > 0
    # Negatives of all earlier groups lie below every positive, too.
    area = (wins - 2 * start * count)[both] / (2 * count * negative_count)[both]
    return area, (count + negative_count)[both]


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


def _keys(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """uint64 [n] that order rows by group, then by score."""
    keys = groups.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= _ordered_bits(scores)
    return keys


def _ordered_bits(scores: np.ndarray) -> np.ndarray:
    """float32 numbers as uint32 in the same order: of negative ones all bits are turned round, of others the sign."""
    bits = (scores + np.float32(0)).view(np.uint32)  # −0 becomes 0
    flips = (bits.view(np.int32) >> 31).view(np.uint32)
    flips |= np.uint32(2**31)
    bits ^= flips
    return bits


def measure(
    logits: np.ndarray, labels: np.ndarray, oracle: np.ndarray | None = None, groups: np.ndarray | None = None
) -> tuple[Values, Bins]:
    """The metrics of one task.

    - auc: area under the ROC curve; null when the labels hold one class only.
    - gauc: mean of the AUC within each user, weighted by the user's rows; users with one class are left out.
    - oracle_auc: AUC of the true probabilities, where the data has them.
    - logloss: mean binary cross entropy, in nats.
    - ne: normalised entropy, logloss over the entropy of the base rate (He et al., ADKDD 2014, section 3).
    - calibration: mean prediction over the base rate; null without positives.
    - base_rate: fraction of positive labels. rows: rows measured.

    Args:
        logits: float32 [n].
        labels: bool [n].
        oracle: true probabilities [n]; NaN: unknown.
        groups: user of every row [n], counted from 0.

    Returns:
        The metrics; and the calibration bins, cut at quantiles of the predictions: equal ones share a bin.
    """
    rows, base_rate = len(labels), labels.mean().item()
    edges = np.unique(_quantiles(logits, BINS))
    total_loss = 0.0
    counts, sums, positives = np.zeros((3, len(edges) + 1))
    for start in range(0, rows, CHUNK):
        some = slice(start, start + CHUNK)
        x, y = torch.from_numpy(logits[some]).double(), torch.from_numpy(labels[some]).double()
        total_loss += F.binary_cross_entropy_with_logits(x, y, reduction="sum").item()
        bins = np.searchsorted(edges, logits[some], "right")
        for total, weights in ((counts, None), (sums, x.sigmoid().numpy()), (positives, y.numpy())):
            total += np.bincount(bins, weights, minlength=len(total))
    logloss, base_entropy = total_loss / rows, entropy(base_rate)
    known = None if oracle is None else ~np.isnan(oracle)
    metrics: Values = {
        "auc": auc(logits, labels),
        "gauc": None if groups is None else _gauc(logits, labels, groups),
        "oracle_auc": None if oracle is None else auc(oracle[known], labels[known]),
        "logloss": logloss,
        "ne": logloss / base_entropy if base_entropy else None,
        "calibration": sums.sum().item() / rows / base_rate if base_rate else None,
        "base_rate": base_rate,
        "rows": rows,
    }
    full = counts > 0
    return metrics, {
        "rows": counts[full].astype(int).tolist(),
        "prediction": (sums[full] / counts[full]).tolist(),
        "positives": positives[full].astype(int).tolist(),
    }


def _gauc(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float | None:
    area, rows = grouped_auc(scores, labels, groups)
    return np.average(area, weights=rows).item() if len(area) else None


def _quantiles(values: np.ndarray, parts: int) -> np.ndarray:
    """The values that cut `values` into equal parts."""
    places = np.arange(1, parts) * len(values) // parts
    return np.partition(values, places)[places]


class Metrics:
    """Collects logits and labels on the host and measures them on rank 0.

    A row takes 9 bytes a task and 8 for its group on its own rank, and some 40 on rank 0 while a task is measured.

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

    def update(self, logits: Tensor, labels: Tensor, rows: int, oracle: Tensor | None, group: Tensor | None) -> None:
        """Add a batch: logits, labels, oracle [B, T], group [B]; those after the first `rows` rows are padding."""
        # Together, as every copy makes the host wait for a GPU.
        columns = [logits.float(), labels, *([] if oracle is None else [oracle])]
        parts = torch.cat([column[:rows] for column in columns], dim=1).cpu().T.split(len(self.tasks))
        self.logits.append(parts[0].contiguous())
        self.labels.append(parts[1].bool())
        self.oracle += [part.contiguous() for part in parts[2:]]
        if self.gauc and group is not None:
            self.group.append(group[:rows].cpu())

    def compute(self) -> tuple[dict[str, Values], dict[str, Bins]]:
        """Metrics and calibration bins by task over the rows of all ranks, the same on every rank."""
        groups = self._gather(self.group)
        if groups is not None:  # counted from 0
            groups = pa.array(groups).dictionary_encode().indices.to_numpy()
        metrics: dict[str, Values] = {}
        bins: dict[str, Bins] = {}
        for i, task in enumerate(self.tasks):
            states = (self.logits, self.labels, self.oracle)
            logits, labels, oracle = (self._gather([part[i] for part in state]) for state in states)
            if logits is not None and labels is not None:
                metrics[task], bins[task] = measure(logits, labels, oracle, groups)
        return self.ranks.first(lambda: (metrics, bins))

    def _gather(self, parts: list[Tensor]) -> np.ndarray | None:
        """Rows of all ranks on rank 0; None elsewhere, and where the data has no such column."""
        rows = self.ranks.gather_rows(torch.cat(parts)) if parts else None
        return None if rows is None else rows.numpy()
