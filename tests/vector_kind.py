"""A kind of feature from outside the package: a vector of a fixed length per row, such as a picture's embedding."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from recmtl.features import DenseKind


class Vector(DenseKind):
    """A column of type FLOAT[n]; a missing vector, and a missing or odd number in one, is 0."""

    @classmethod
    def check(cls, column: str, sql_type: str, separator: str) -> str | None:
        """It must be an array of a fixed length."""
        return None if re.fullmatch(r"(FLOAT|DOUBLE)\[\d+\]", sql_type) else "; a vector needs FLOAT[n]"

    @classmethod
    def dense_width(cls, sql_type: str) -> int:
        """The length."""
        return int(sql_type[sql_type.index("[") + 1 : -1])

    @property
    def prepared_type(self) -> pa.DataType:
        """The vector."""
        return pa.list_(pa.field("element", pa.float32(), nullable=False), self.width)

    def numbers(self, column: pa.Array) -> np.ndarray:
        """As they are."""
        rows = [[np.nan] * self.width if row is None else row for row in column.to_pylist()]
        return np.array(rows, np.float64).reshape(-1, self.width)

    def assemble(self, numbers: np.ndarray) -> pa.Array:
        """Without what is no number."""
        values = np.nan_to_num(numbers, posinf=0.0, neginf=0.0).astype(np.float32)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=self.prepared_type)

    def read(self, column: pa.Array) -> np.ndarray:
        """[n, width]."""
        return column.flatten().to_numpy().reshape(-1, self.width)
