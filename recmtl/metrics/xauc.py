r"""XAUC: how well predictions order rows whose labels are numbers.

    XAUC = Σ_{i<j, y_i ≠ y_j} w_i w_j ([(p_i − p_j)(y_i − y_j) > 0] + [p_i = p_j]/2) / Σ_{i<j, y_i ≠ y_j} w_i w_j

the probability that of two rows with different labels the prediction orders them alike. With labels 0 and 1 it is the
AUC. Every pair counts; none are sampled. Source: Zhan et al., Deconfounding Duration Bias in Watch-time Prediction for
Video Recommendation, KDD 2022, section 5.1.

The rows of all ranks are cut into ranges of labels and into ranges of predictions (`recmtl.metrics.ranges`). A pair is

- in one range of labels: the rank that gets this range counts it;
- in different ranges of labels, but in one of predictions: the rank that gets that range counts it, of whose rows it
  needs no labels but their ranges;
- in different ranges of both: the numbers of rows in both ranges, for all of them, say how many such pairs there are.

So two exchanges of the rows count every pair once. A range with a single label has no pair to count.
"""

from __future__ import annotations

import numpy as np

from recmtl.metrics.names import Values
from recmtl.metrics.ranges import SortedRows, high_bits, keys_of, low_bits, ordered_bits
from recmtl.metrics.rows import RowMetric, Rows


class XAUC(RowMetric):
    """XAUC of a regression or duration task.

    Values:
        xauc: null where all labels are equal.
    """

    higher_is_better = True

    def measure(self, rows: Rows) -> Values:
        """Exchanges the rows by ranges of their label, then by ranges of their prediction."""
        low, high = rows.label_limits()
        if not low.min() < high.max():
            return {"xauc": None}
        context, weighted = rows.context, rows.weighted
        columns = (
            (keys_of(block.labels, ordered_bits(block.predictions(self.task))), block.weights) for block in rows.blocks
        )
        by_label = SortedRows(context, columns, weighted=weighted)
        labels = by_label.cuts(rows.count)
        alike: int | float = 0
        pairs: int | float = 0
        for _, keys, mass in by_label.exchange(labels):
            alike_in_range, pairs_in_range = count_pairs(low_bits(keys), high_bits(keys), mass)
            alike, pairs = alike + alike_in_range, pairs + pairs_in_range
        del by_label
        columns = (
            (keys_of(block.predictions(self.task), labels.range_of(ordered_bits(block.labels))), block.weights)
            for block in rows.blocks
        )
        by_prediction = SortedRows(context, columns, weighted=weighted)
        cuts = by_prediction.cuts(rows.count)
        for _, keys, mass in by_prediction.exchange(cuts):
            alike += count_pairs(high_bits(keys), low_bits(keys), mass)[0]
        counted = context.sum_on_host(np.array([alike, pairs], np.float64 if weighted else np.int64))
        alike, pairs = counted.tolist()
        # By range of predictions and of labels: the rows' weight.
        mass = by_prediction.tally(cuts, len(labels))
        above = np.cumsum(mass[::-1], axis=0)[::-1] - mass
        above = np.cumsum(above[:, ::-1], axis=1)[:, ::-1] - above  # in higher ranges of both
        alike += 4 * (mass * above).sum().item() + _parted(mass[cuts.single])
        pairs += 2 * _parted(mass.sum(0, keepdims=True))
        return {"xauc": alike / pairs}


def _parted(mass: np.ndarray) -> int | float:
    """Σ m_i m_j over the ordered pairs i ≠ j of each row of a matrix."""
    return (np.square(mass.sum(1)) - np.square(mass).sum(1)).sum().item()


def xauc(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """XAUC of any numbers in one process, every row counted once; None where all labels are equal."""
    places, classes = (np.unique(column, return_inverse=True)[1] for column in (predictions, labels))
    alike, pairs = count_pairs(places, classes, np.ones(len(places), np.int64))
    return alike / pairs if pairs else None


def count_pairs(predictions: np.ndarray, labels: np.ndarray, mass: np.ndarray) -> tuple[int | float, int | float]:
    """The pairs of rows with different labels, in O(n log n).

    Args:
        predictions: or integers in their order [n].
        labels: the same [n].
        mass: weights of the rows, int64 or float64 [n].

    Returns:
        4 for each pair that both columns order alike, and 2 for each whose predictions are equal; 4 for each pair. A
        pair counts the product of its weights.
    """
    if not len(labels):
        return 0, 0
    # Among equal labels the prediction falls, and among equal predictions the place does, so that the pairs which rise
    # in both orders are those that differ in both columns and are ordered alike by them.
    falling = -predictions.astype(np.int64)
    by_label = np.lexsort((falling, labels))
    place = np.empty(len(labels), np.int64)
    place[by_label] = np.arange(len(labels))
    by_prediction = np.lexsort((-place, predictions))
    alike = _rising_pairs(place[by_prediction], mass[by_prediction])
    same_label = _squares(mass[by_label], _changes(labels[by_label]))
    same_prediction = _squares(mass[by_prediction], _changes(predictions[by_prediction]))
    both = _changes(labels[by_label]) | _changes(predictions[by_label])
    # Twice the weight of the pairs that differ in label, and of those among them that are equal in prediction.
    pairs = mass.sum().item() ** 2 - same_label
    ties = same_prediction - _squares(mass[by_label], both)
    return 4 * alike + ties, 2 * pairs


def _rising_pairs(places: np.ndarray, mass: np.ndarray) -> int | float:
    """Σ m_i m_j over the pairs i < j with places_i < places_j.

    The pairs are counted bit by bit, from the highest: rows that are alike in all higher bits form a block, in their
    order, and two of them whose highest different bit is this one rise where the row without it comes first. Then each
    block is parted by that bit. Padded to a power of two, all blocks of a level have one size.

    Args:
        places: a permutation of 0 … n − 1.
        mass: int64 or float64 [n].
    """
    bits = max(len(places) - 1, 0).bit_length()
    size = 2**bits
    order = np.concatenate([places, np.arange(len(places), size)]).astype(np.uint32)
    mass = np.concatenate([mass, np.zeros(size - len(mass), mass.dtype)])
    total = 0
    for bit in range(bits - 1, -1, -1):
        high = (order >> np.uint32(bit)) & np.uint32(1) == 1
        lower, upper = mass[~high], mass[high]
        # The low rows before each high one: those of the block alone, as every block has as many low as high rows.
        block = 2**bit
        low_before = (np.cumsum(~high, dtype=np.int64) - 1)[high]
        ends = np.cumsum(lower)
        start = np.repeat(np.concatenate((ends[:1] * 0, ends[block - 1 : -1 : block])), block)
        before = np.where(low_before < 0, 0, ends[low_before]) - start
        total += (upper * before).sum().item()
        order = np.stack([order[~high].reshape(-1, block), order[high].reshape(-1, block)], axis=1).reshape(-1)
        mass = np.stack([lower.reshape(-1, block), upper.reshape(-1, block)], axis=1).reshape(-1)
    return total


def _changes(ordered: np.ndarray) -> np.ndarray:
    """Whether each value but the first differs from the one before it, bool [n − 1]."""
    return ordered[1:] != ordered[:-1]


def _squares(mass: np.ndarray, changes: np.ndarray) -> int | float:
    """Σ m² over the runs between changes, m the mass of a run."""
    first = np.concatenate(([0], np.flatnonzero(changes) + 1))
    return np.square(np.add.reduceat(mass, first)).sum().item()
