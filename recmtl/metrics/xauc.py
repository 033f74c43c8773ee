r"""XAUC: how well predictions order rows whose labels are numbers.

    XAUC = Σ_{i<j, y_i ≠ y_j} w_i w_j ([(p_i − p_j)(y_i − y_j) > 0] + [p_i = p_j]/2) / Σ_{i<j, y_i ≠ y_j} w_i w_j

the probability that of two rows with different labels the prediction orders them alike. With labels 0 and 1 it is the
AUC. Every pair counts; none are sampled. Source: Zhan et al., Deconfounding Duration Bias in Watch-time Prediction for
Video Recommendation, KDD 2022, section 5.1.
"""

from __future__ import annotations

import numpy as np


def xauc(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """XAUC in O(n log n).

    Args:
        predictions: [n], none NaN.
        labels: [n].
        weights: above 0 [n]; None: every row counts once, and pairs are counted in integers.

    Returns:
        None where all labels are equal.
    """
    mass = np.ones(len(labels), np.int64) if weights is None else weights.astype(np.float64)
    # Among equal labels the prediction falls, and among equal predictions the place does, so that the pairs which rise
    # in both orders are those that differ in both columns and are ordered alike by them.
    by_label = np.lexsort((-predictions, labels))
    if not _changes(labels[by_label]).any():
        return None
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
    return (4 * alike + ties) / (2 * pairs)


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
