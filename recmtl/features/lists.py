"""What kinds of any number of values per row have in common."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recmtl.features.base import TableKind
from recmtl.features.categorical import is_simple
from recmtl.schema import MISSING

PREPARED = pa.list_(pa.field("element", pa.int32(), nullable=False))


class ListKind(TableKind):
    """A list, or a text whose parts lie between separators. A null list is empty."""

    is_list = True

    @classmethod
    def check(cls, column: str, sql_type: str, separator: str) -> str | None:
        """It must be a list of single values, or a text with a separator."""
        if separator:
            return None if sql_type == "VARCHAR" else "; separator is for text"
        if not sql_type.endswith("]"):
            return f"; a {'sequence' if cls.is_sequence else 'list'} feature needs a list, or separator = ',' for text"
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

    def items(self, column: pa.Array) -> tuple[pa.Array, np.ndarray]:
        """The items of all rows one after the other, and how many each row has, int64 [n]."""
        lists = self._parts(column) if self.feature.separator else column
        lists = lists.cast(pa.large_list(lists.type.value_type))
        return lists.flatten(), lengths_of(lists)

    def _parts(self, column: pa.Array) -> pa.Array:
        """The parts of texts, stripped, none of an empty text. Empty parts are missing items, which some kinds keep."""
        if pa.types.is_null(column.type):
            return pa.nulls(len(column), pa.large_list(pa.large_string()))
        texts = column.cast(pa.large_string())
        if self.keeps_missing:
            texts = pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts)
        lists = pc.split_pattern(texts, self.feature.separator).cast(pa.large_list(pa.large_string()))
        parts = pc.utf8_trim_whitespace(lists.flatten())
        kept = pc.not_equal(parts, "").to_numpy(zero_copy_only=False)
        if self.keeps_missing:
            parts, kept = pc.if_else(pa.array(kept), parts, None), np.ones(len(parts), bool)
        return pa.LargeListArray.from_arrays(offsets_of(kept, lengths_of(lists)), parts.filter(pa.array(kept)))

    def assemble(self, ids: np.ndarray, lengths: np.ndarray | None) -> pa.Array:
        """Lists of the ids, those of missing values only where they stay."""
        assert lengths is not None
        kept = np.ones(len(ids), bool) if self.keeps_missing else ids != MISSING
        offsets = offsets_of(kept, lengths).cast(pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.array(ids[kept], pa.int32()), type=PREPARED)

    def read(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Lengths and ids, without copying the latter."""
        return np.diff(column.offsets.to_numpy()), column.flatten().to_numpy()


def lengths_of(lists: pa.Array) -> np.ndarray:
    """Items of every list, int64 [n]; null lists have none, whatever their offsets say."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def offsets_of(kept: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """Where lists begin once only some of their items are kept, int64 [n + 1].

    Args:
        kept: whether an item stays, of all lists one after the other.
        lengths: items of every list before.
    """
    ends = np.concatenate(([0], np.cumsum(kept, dtype=np.int64)))[np.cumsum(lengths, dtype=np.int64)]
    return pa.array(np.concatenate(([0], ends)))
