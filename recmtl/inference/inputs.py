"""What a model reads of some rows, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recmtl.features import FeatureKinds

ITEMS_AT_ONCE = 2**17
"""Items of a sequence that go through the network at a time, padding among them."""
PAIRS_AT_ONCE = 2**25
"""Pairs of items of one sequence, of which some encoders keep a number each. They decide from 256 items a row on."""


@dataclass(frozen=True)
class Inputs:
    """B rows of C categorical features, N numbers and any number of list features."""

    ids: np.ndarray
    """int32 [C, B]."""
    numeric: np.ndarray
    """float32 [B, N]."""
    lists: list[tuple[np.ndarray, np.ndarray]]
    """Of every list feature the ids of all rows one after the other, int32 [n], and how many each has, int32 [B]."""
    sequences: tuple[int, ...] = ()
    """Which of them are sequences."""

    @property
    def rows(self) -> int:
        """B."""
        return self.numeric.shape[0]

    def slice(self, start: int, stop: int) -> Inputs:
        """Rows start … stop − 1."""
        lists = []
        for ids, lengths in self.lists:
            first, last = lengths[:start].sum(), lengths[:stop].sum()
            lists.append((ids[first:last], lengths[start:stop]))
        return Inputs(self.ids[:, start:stop], self.numeric[start:stop], lists, self.sequences)

    def at_once(self, rows: int) -> int:
        """How many rows to put through the network at a time.

        Sequences are padded to the longest: where that is long, fewer rows than `rows` take the memory.
        """
        longest = max((int(self.lists[place][1].max(initial=0)) for place in self.sequences), default=0)
        return max(1, min(rows, ITEMS_AT_ONCE // max(longest, 1), PAIRS_AT_ONCE // max(longest, 1) ** 2))


@dataclass(frozen=True)
class Shared:
    """What several rows have in common."""

    features: Set[str]
    """Whose columns hold one value for several rows."""
    places: np.ndarray
    """Of every row the place of its value in such a column, int64 [B]."""


class Collator(FeatureKinds):
    """Puts the encoder's columns side by side."""

    def collate(self, columns: Mapping[str, pa.Array], shared: Shared | None = None) -> Inputs:
        """The arrays of what `Encoder.encode` gave.

        Args:
            columns: by feature.
            shared: features whose columns have one value for several rows; None: none.
        """
        names, places = (set(), np.empty(0, int)) if shared is None else (shared.features, shared.places)
        rows = len(places) if names else len(next(iter(columns.values())))

        def whole(name: str) -> pa.Array:
            return columns[name].take(pa.array(places)) if name in names else columns[name]

        ids = np.empty((len(self.categorical), rows), np.int32)
        for row, kind in zip(ids, self.categorical, strict=True):
            name = kind.feature.name
            found = kind.read(columns[name])[1]
            row[:] = found[places] if name in names else found
        lists = []
        for kind in self.lists:
            lengths, values = kind.read(whole(kind.feature.name))
            assert lengths is not None
            lists.append((values, lengths))
        numbers = [dense.read(whole(dense.feature.name)) for dense in self.dense]
        numeric = np.concatenate([np.empty((rows, 0), np.float32), *numbers], axis=1, dtype=np.float32)
        return Inputs(ids, numeric, lists, self.sequence_places)
