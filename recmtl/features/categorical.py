"""One value per row, which has a row in an embedding table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recmtl.features.base import TableKind

RECORDS = ("STRUCT", "MAP", "UNION")


def is_simple(sql_type: str) -> bool:
    """Whether values of a SQL type are single ones: no lists, no records."""
    return not (sql_type.startswith(RECORDS) or sql_type.endswith("]"))


class Categorical(TableKind):
    """Null and NaN are missing; every other value counts, the empty text too."""

    options = ("table",)

    @classmethod
    def check(cls, column: str, sql_type: str, separator: str) -> str | None:
        """It must not be a list or a record."""
        if is_simple(sql_type):
            return None
        if not sql_type.endswith("]"):
            return "; its values must be simple"
        if sql_type[: sql_type.rindex("[")].endswith("]"):
            return f", a list of lists; flatten it in sql, as in flatten({column}) and set kind = 'list'"
        return "; set kind = 'list'"

    @property
    def prepared_type(self) -> pa.DataType:
        """The id."""
        return pa.int32()

    def flatten(self, column: pa.Array) -> tuple[pa.Array, None]:
        """The column as it is."""
        return column, None

    def assemble(self, ids: np.ndarray, lengths: np.ndarray | None) -> pa.Array:
        """The ids as they are."""
        return pa.array(ids, pa.int32())

    def read(self, column: pa.Array) -> tuple[None, np.ndarray]:
        """The ids, without copying."""
        return None, column.to_numpy()
