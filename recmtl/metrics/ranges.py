r"""Rows of all ranks by rising value, one range of values at a time: how what needs an order is counted exactly.

What needs an order (AUC, XAUC, quantiles) is counted as in a sample sort:

1. Every rank sorts its rows by the value, block by block (`SortedRows`). Nothing is exchanged.
2. The ranks agree on cuts of the values (`quantiles`): a quantile is found four bits at a time, by eight sums of counts
   over the ranks, which makes it exact. No range between two cuts has more than about `RANGE` rows, however values are
   repeated: a value at a quantile is a range of its own.
3. Ranges of several values are dealt over the ranks, one a rank at a time: all rows of a range go to its rank, which
   counts the pairs within it (`exchange`). A range of a single value needs no rows: all of its pairs are ties, which
   follow from how many rows of each kind there are (`tally`).
4. Pairs of rows in different ranges follow from the numbers of rows of each kind in each range, summed over the ranks.

A row is a key of 64 bits: the value's 32 in the order of the values, then what else is counted by (label and fold).
While a metric is measured a rank keeps 8 bytes for each of its rows, 12 where rows weigh, and the rows of one range.

Counting rows in 2^32 buckets, the 32 bits of the value in two passes of 16, is as exact and needs no sort, but is no
cheaper. Measured on 2^22 normal scores, a core's nanoseconds a row: the sort of blocks takes 52, while the buckets take
16 for the first pass by label and fold, whose table has 105 MB (2^16 · 200 counts), 41 to bring the rows of each of the
4,139 buckets that have some together, and 44 to count the low bits in each for a single label and fold. The ranks would
have to exchange nearly as much as the rows, for scores of models are seldom repeated in all 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recmtl.distributed.context import DistContext

RANGE = 2**19
"""Rows of a range, about, on the rank that counts it."""
LOW = np.uint64(32)
"""Bits of a key below the value's."""
END = 2**32
"""What is above the bits of every value."""
NO_KEYS: np.ndarray = np.zeros(0, np.uint64)
NO_WEIGHTS: np.ndarray = np.zeros(0, np.float32)


def ordered_bits(values: np.ndarray) -> np.ndarray:
    """float32 numbers as uint32 in the same order: of negative ones all bits are turned round, of others the sign."""
    bits = (values + np.float32(0)).view(np.uint32)  # −0 becomes 0
    flips = (bits.view(np.int32) >> 31).view(np.uint32)
    flips |= np.uint32(2**31)
    bits ^= flips
    return bits


def from_ordered_bits(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of `ordered_bits`."""
    flips = (~bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(2**31)
    return (bits ^ flips).view(np.float32)


def keys_of(values: np.ndarray, below: np.ndarray | int = 0) -> np.ndarray:
    """uint64 [n] that order rows by a float32 value [n], and rows of one value by an integer below 2^32."""
    keys = ordered_bits(values).astype(np.uint64)
    keys <<= LOW
    keys |= np.asarray(below, np.uint64)
    return keys


@dataclass(frozen=True)
class Cuts:
    """Ranges of values, the same on all ranks."""

    starts: np.ndarray
    """Ordered bits at which the ranges start, rising, int64 [R]."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def single(self) -> np.ndarray:
        """Which ranges have a single value, bool [R]."""
        return np.diff(self.starts, append=END) == 1

    def range_of(self, bits: np.ndarray) -> np.ndarray:
        """The range of every value, by its ordered bits [n]."""
        return np.searchsorted(self.starts, bits, "right") - 1


class SortedRows:
    """The rows of all ranks by rising value; every rank has sorted its own blocks.

    Args:
        context: this process and the others.
        blocks: keys uint64 [n] of this rank's rows (`keys_of`), and their weights, float32 [n], or None: all 1.
        weighted: whether rows weigh; all ranks say the same, also those without rows.
    """

    def __init__(
        self, context: DistContext, blocks: Iterable[tuple[np.ndarray, np.ndarray | None]], *, weighted: bool
    ) -> None:
        self.context, self.weighted = context, weighted
        self.blocks: list[tuple[np.ndarray, np.ndarray | None]] = [sort_rows(*block) for block in blocks]

    def quantiles(self, targets: np.ndarray, *, by_mass: bool = False) -> np.ndarray:
        """For each target the smallest value such that more rows than that have it or a smaller one.

        Args:
            targets: rows [Q] below the number of all rows, or weights below that of all rows.
            by_mass: targets are weights.

        Returns:
            Ordered bits, int64 [Q].
        """
        found = np.zeros(len(targets), np.int64)
        for shift in range(28, -1, -4):
            ends = found[:, None] + (np.arange(1, 17) << shift)
            # The four bits are how many of their values leave too few rows below their end.
            below = self.context.sum_on_host(self._below(ends.reshape(-1), by_mass=by_mass)).reshape(ends.shape)
            found += np.minimum((below <= np.asarray(targets)[:, None]).sum(1), 15) << shift
        return found

    def cuts(self, rows: int) -> Cuts:
        """Cuts into ranges of about `RANGE` rows, as many as the ranks can count at once or several times that.

        Args:
            rows: of all ranks, at least 1.
        """
        turns = -(-rows // (RANGE * self.context.world_size))
        ranges = turns * self.context.world_size
        at = np.unique(self.quantiles(np.arange(1, ranges) * rows // ranges)) if ranges > 1 else np.zeros(0, np.int64)
        starts = np.unique(np.concatenate([[0], at, at + 1]))
        return Cuts(starts[starts < END])

    def tally(self, cuts: Cuts, kinds: int) -> np.ndarray:
        """Weight of the rows of all ranks by range and kind: what stands in a key below the value.

        Returns:
            [R, kinds], int64 unless rows weigh.
        """
        found: np.ndarray = np.zeros(len(cuts) * kinds, np.float64 if self.weighted else np.int64)
        for (keys, weights), bounds in zip(self.blocks, self._bounds(cuts), strict=True):
            places = low_bits(keys) + kinds * np.repeat(np.arange(len(cuts)), np.diff(bounds))
            found += np.bincount(places, weights, minlength=len(found))
        return self.context.sum_on_host(found).reshape(len(cuts), kinds)

    def exchange(self, cuts: Cuts) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The rows of all ranks in each range of several values that this rank counts.

        All ranks go through all turns together. A rank that has none left in the last turn gets no rows.

        Yields:
            The range; keys, uint64 [n] rising; weight of each row, int64 [n], 1, or float64 [n] where rows weigh.
        """
        world_size, bounds = self.context.world_size, self._bounds(cuts)
        several = np.flatnonzero(~cuts.single)
        for turn in range(0, len(several), world_size):
            dealt = several[turn : turn + world_size].tolist()
            parts = [self._rows_of(bounds, place) for place in dealt]
            parts += [(NO_KEYS, NO_WEIGHTS)] * (world_size - len(dealt))
            keys = self.context.exchange([keys for keys, _ in parts])
            weights = self.context.exchange([weights for _, weights in parts]) if self.weighted else None
            if self.context.rank < len(dealt):
                keys, weights = sort_rows(keys, weights, kind="stable")  # which merges what blocks have sorted
                yield dealt[self.context.rank], keys, mass_of(keys, weights)

    def _below(self, ends: np.ndarray, *, by_mass: bool) -> np.ndarray:
        """Rows of this rank, or their weight, below each of some ordered bits [K]."""
        found: np.ndarray = np.zeros(len(ends), np.float64 if by_mass else np.int64)
        for (_, weights), places in zip(self.blocks, self._places(ends), strict=True):
            if by_mass and weights is not None:
                found += np.concatenate(([0.0], np.cumsum(weights, dtype=np.float64)))[places]
            else:
                found += places
        return found

    def _bounds(self, cuts: Cuts) -> list[np.ndarray]:
        """Where the ranges start in each block, and the end [R + 1]."""
        starts = self._places(cuts.starts)
        return [np.append(places, len(keys)) for (keys, _), places in zip(self.blocks, starts, strict=True)]

    def _places(self, bits: np.ndarray) -> list[np.ndarray]:
        """How many keys of each block are below some ordered bits [K]."""
        # The end of all values has no key.
        inside = np.minimum(bits, END - 1).astype(np.uint64) << LOW
        return [np.where(bits < END, np.searchsorted(keys, inside), len(keys)) for keys, _ in self.blocks]

    def _rows_of(self, bounds: list[np.ndarray], place: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and weights of its own rows in a range; no weights where rows do not weigh."""
        keys, weights = [NO_KEYS], [NO_WEIGHTS]
        for (of_block, weights_of_block), ends in zip(self.blocks, bounds, strict=True):
            inside = slice(ends[place], ends[place + 1])
            keys.append(of_block[inside])
            if weights_of_block is not None:
                weights.append(weights_of_block[inside])
        return np.concatenate(keys), np.concatenate(weights)


def high_bits(keys: np.ndarray) -> np.ndarray:
    """The ordered bits of the values of keys, uint32 [n]."""
    return (keys >> LOW).astype(np.uint32)


def low_bits(keys: np.ndarray) -> np.ndarray:
    """What keys have below the value, int64 [n]."""
    return (keys & np.uint64(END - 1)).astype(np.int64)


def sort_rows(
    keys: np.ndarray, weights: np.ndarray | None, kind: Literal["quicksort", "stable"] = "quicksort"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows by rising key; keys without weights are sorted in place."""
    if weights is None:
        keys.sort(kind=kind)
        return keys, None
    order = np.argsort(keys, kind=kind)
    return keys[order], weights[order]


def mass_of(keys: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """The weight of each row [n]: 1, in integers, which count pairs exactly, or in float64 where rows weigh."""
    return np.ones(len(keys), np.int64) if weights is None else weights.astype(np.float64)
