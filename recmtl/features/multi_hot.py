"""Any number of values per row, whose embeddings are pooled: tags, histories without an order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recmtl.features.lists import ListKind


class MultiHot(ListKind):
    """The first `max_length` values of a list, or of the parts of a text between separators.

    A null list is empty. Missing values are left out; unseen ones stay, with the id that they share.
    """

    options = ("table", "pooling", "max_length", "separator")

    def flatten(self, column: pa.Array) -> tuple[pa.Array, np.ndarray]:
        """The items that are kept."""
        items, lengths = self.items(column)
        longest = self.feature.max_length
        if longest is not None and len(lengths) and lengths.max() > longest:
            place = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            items = items.filter(pa.array(place < longest))
            lengths = np.minimum(lengths, longest)
        return items, lengths
