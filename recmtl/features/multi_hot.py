"""Any number of values per row, whose embeddings are pooled: tags, histories without an order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recmtl.features.base import TableKind
from recmtl.features.categorical import is_simple
from recmtl.schema import MISSING

PREPARED = pa.list_(pa.field("element", pa.int32(), nullable=False))


class MultiHot(TableKind):
    """The first `max_length` values of a list, or of the parts of a text between separators.

    A null list is empty. Missing values are left out; unseen ones stay, with the id that they share.
    """

    options = ("table", "pooling", "max_length", "separator")
    is_list = True

    @classmethod
    def check(cls, column: str, sql_type: str, separator: str) -> str | None:
        """It must be a list of single values, or a text with a separator."""
        if separator:
            return None if sql_type == "VARCHAR" else "; separator is for text"
        if not sql_type.endswith("]"):
            return "; a list feature needs a list, or separator = ',' for text"
        items = sql_type[: sql_type.rindex("[")]
        if not sql_type.endswith("[]"):
            return f"; cast it to a list in sql: {column}::{items}[]"
        if items.endswith("]"):
            return f", a list of lists; flatten it in sql, as in flatten({column})"
        return None if is_simple(items) else "; its values must be simple"

    @classmethod
    def value_sql_type(cls, sql_type: str, separator: str) -> str:
        """Of the items."""
        return sql_type if separator else sql_type[:-2]

    @property
    def prepared_type(self) -> pa.DataType:
        """The ids."""
        return PREPARED

    def flatten(self, column: pa.Array) -> tuple[pa.Array, np.ndarray]:
        """The items that are kept."""
        lists = self._parts(column) if self.feature.separator else column
        lists = lists.cast(pa.large_list(lists.type.value_type))
        # Null lists have no items, whatever their offsets say.
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        items = lists.flatten()
        longest = self.feature.max_length
        if longest is not None and len(lengths) and lengths.max() > longest:
            place = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            items = items.filter(pa.array(place < longest))
            lengths = np.minimum(lengths, longest)
        return items, lengths

    def _parts(self, column: pa.Array) -> pa.Array:
        """The parts of texts: stripped, without those that are empty."""
        if pa.types.is_null(column.type):
            return pa.nulls(len(column), pa.large_list(pa.large_string()))
        lists = pc.split_pattern(column.cast(pa.large_string()), self.feature.separator)
        lists = lists.cast(pa.large_list(pa.large_string()))
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        parts = pc.utf8_trim_whitespace(lists.flatten())
        kept = pc.not_equal(parts, "").to_numpy(zero_copy_only=False)
        ends = np.concatenate(([0], np.cumsum(kept, dtype=np.int64)))[np.cumsum(lengths)]
        return pa.LargeListArray.from_arrays(pa.array(np.concatenate(([0], ends))), parts.filter(pa.array(kept)))

    def assemble(self, ids: np.ndarray, lengths: np.ndarray | None) -> pa.Array:
        """Lists of the ids that are not missing."""
        assert lengths is not None
        known = ids != MISSING
        ends = np.concatenate(([0], np.cumsum(known, dtype=np.int64)))[np.cumsum(lengths, dtype=np.int64)]
        offsets = pa.array(np.concatenate(([0], ends)).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, pa.array(ids[known], pa.int32()), type=PREPARED)

    def read(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Lengths and ids, without copying the latter."""
        return np.diff(column.offsets.to_numpy()), column.flatten().to_numpy()
