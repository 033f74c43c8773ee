"""What happened before a row, event by event, in order: the products seen, what was done with them, how long ago."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recmtl.features.lists import ListKind


class Sequence(ListKind):
    """The last `max_length` values of a list, or of the parts of a text between separators, the latest last.

    A null list is empty. Every item keeps its place: a missing one has the id of missing values, an unseen one that of
    unseen values, so that the columns of a history stay aligned.
    """

    options = ("table", "max_length", "separator", "history", "target")
    keeps_missing = True
    is_sequence = True

    def flatten(self, column: pa.Array) -> tuple[pa.Array, np.ndarray]:
        """The items that are kept."""
        items, lengths = self.items(column)
        longest = self.feature.max_length
        if longest is not None and len(lengths) and lengths.max() > longest:
            from_the_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(items))
            items = items.filter(pa.array(from_the_end <= longest))
            lengths = np.minimum(lengths, longest)
        return items, lengths
