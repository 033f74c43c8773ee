"""The AUC within users: rows are exchanged by a hash of their user, so that each user's are on one rank."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from recmtl.metrics.auc import Weighed
from recmtl.metrics.jackknife import mixed
from recmtl.metrics.names import Values
from recmtl.metrics.ranges import NO_KEYS, NO_WEIGHTS, RANGE, high_bits, keys_of, low_bits, mass_of, sort_rows
from recmtl.metrics.rows import Block, RowMetric, Rows
from recmtl.schema import NO_USER


class GroupedAUC(RowMetric):
    """Mean of the AUC within each user, by the weight of the user's rows.

    Users with one class, and rows that belong to no user, are left out.

    Values:
        gauc: null where no user has both classes, and where no row has a user.
    """

    higher_is_better = True

    def measure(self, rows: Rows) -> Values:
        """Exchanges the rows by a hash of their user, some of the users at a time."""
        if not rows.have("users"):
            return {"gauc": None}
        sums = np.zeros(2)
        for users, keys, weights in _exchanged(rows):
            area, mass = grouped_auc(users, keys, weights)
            sums += (area * mass).sum(), mass.sum()
        weighted, mass = rows.context.sum_on_host(sums).tolist()
        return {"gauc": weighted / mass if mass else None}


def _exchanged(rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """All rows of some users at a time, about `RANGE` rows or those of a single user; all ranks take as many turns.

    Yields:
        Users, int64 [n]; keys of score and label, uint64 [n]; weights, float32 [n], or None where all are 1.
    """
    context = rows.context
    blocks = [block.take(block.users != NO_USER) for block in rows.blocks if block.users is not None]
    counted = context.sum_on_host(np.array([sum(map(len, blocks))])).item()
    turns = max(1, -(-counted // (RANGE * context.world_size)))
    orders = [_by_part(block.users, turns * context.world_size) for block in blocks if block.users is not None]
    none = np.zeros(0, np.int64), NO_KEYS, NO_WEIGHTS
    for turn in range(turns):
        sent: list[list[np.ndarray]] = [[], [], []]  # users, keys and weights by rank
        for part in range(turn * context.world_size, (turn + 1) * context.world_size):
            places = [order[ends[part] : ends[part + 1]] for order, ends in orders]
            columns = zip(none, *map(_columns, blocks, places), strict=True)
            for parts, column in zip(sent, columns, strict=True):
                parts.append(np.concatenate(column))
        users, keys = context.exchange(sent[0]), context.exchange(sent[1])
        yield users, keys, context.exchange(sent[2]) if rows.weighted else None


def _by_part(users: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of rows by the part of all users that theirs is in, uint32 [n], and where each part starts [parts + 1]."""
    part = (mixed(users) % np.uint64(parts)).astype(np.uint16)  # 2^16 parts are of 7 · 10^10 rows
    order = np.argsort(part, kind="stable")
    return order.astype(np.uint32), np.searchsorted(part[order], np.arange(parts + 1))


def _columns(block: Block, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, keys and weights of some rows of a block; no weights where rows do not weigh."""
    assert block.users is not None
    keys = keys_of(block.logits[places], block.labels[places])
    weights = NO_WEIGHTS if block.weights is None else block.weights[places]
    return block.users[places], keys, weights


def grouped_auc(users: np.ndarray, keys: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The AUC within every user that has both classes, counted as `recmtl.metrics.auc` has it.

    Args:
        users: int64 [n].
        keys: of score and label (`recmtl.metrics.ranges.keys_of`), uint64 [n].
        weights: float32 [n]; None: all 1.

    Returns:
        By user: AUC [U], weight of the user's rows [U].
    """
    number = pa.array(users).dictionary_encode().indices.to_numpy()
    by_user = (number.astype(np.uint64) << np.uint64(32)) | high_bits(keys)
    positive = low_bits(keys) == 1
    positives, negatives = _weighed(by_user, weights, positive), _weighed(by_user, weights, ~positive)
    user, first = np.unique(positives.keys >> np.uint64(32), return_index=True)
    if not len(user):
        return np.zeros(0), np.zeros(0)
    start, stop = (np.searchsorted(negatives.keys, (user + np.uint64(i)) << np.uint64(32)) for i in (0, 1))
    both = stop > start
    mass = np.add.reduceat(positives.weights, first)
    # Negatives of all earlier users lie below every positive, too.
    wins = np.add.reduceat(negatives.below(positives), first) - 2 * mass * negatives.ends[start]
    of_negatives = negatives.ends[stop] - negatives.ends[start]
    return wins[both] / (2 * mass * of_negatives)[both], (mass + of_negatives)[both]


def _weighed(keys: np.ndarray, weights: np.ndarray | None, inside: np.ndarray) -> Weighed:
    """The rows of one class by rising key."""
    keys, weights = sort_rows(keys[inside], None if weights is None else weights[inside])
    return Weighed(keys, mass_of(keys, weights))
