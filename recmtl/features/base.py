"""What a kind of feature is: how a column of the recipe's query becomes what a model receives.

    with a table:  raw column ──flatten──▶ values ──look-up──▶ ids ──assemble──▶ prepared column ──read──▶ NumPy
    dense:         raw column ──numbers──▶ float64 ──fit, assemble──▶ prepared column ──read──▶ NumPy

A new kind is one file with a subclass of `TableKind` or `DenseKind` and one line in `recmtl.features.KINDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import pyarrow as pa

from recmtl.schema import Feature


class FeatureKind(ABC):
    """One kind of feature, for one feature.

    Args:
        feature: what the recipe and the training rows say of it.
    """

    options: ClassVar[tuple[str, ...]] = ()
    """Keys of the recipe that features of this kind take beside name, kind and column."""

    def __init__(self, feature: Feature) -> None:
        self.feature = feature

    @classmethod
    @abstractmethod
    def check(cls, column: str, sql_type: str, separator: str) -> str | None:
        """What stands against a column of this SQL type, as the end of "column 'x' is TYPE"; None: nothing."""

    @property
    @abstractmethod
    def prepared_type(self) -> pa.DataType:
        """Type of the column in prepared files; nothing in it is null."""


class TableKind(FeatureKind):
    """A kind whose values have rows in an embedding table."""

    is_list: ClassVar[bool] = False
    """Whether a row has any number of ids in place of one."""
    keeps_missing: ClassVar[bool] = False
    """Whether items without a value stay in a list, with the id of missing values."""
    is_sequence: ClassVar[bool] = False
    """Whether a model reads the embeddings of a list's items one by one, in their order."""

    @classmethod
    def value_sql_type(cls, sql_type: str, separator: str) -> str:
        """SQL type of the single values of a column of type `sql_type`."""
        return sql_type

    @abstractmethod
    def flatten(self, column: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
        """The values of all rows one after the other, and how many each row has (int64 [n]; None: one each)."""

    @abstractmethod
    def assemble(self, ids: np.ndarray, lengths: np.ndarray | None) -> pa.Array:
        """The prepared column from the ids of what `flatten` gave."""

    @abstractmethod
    def read(self, column: pa.Array) -> tuple[np.ndarray | None, np.ndarray]:
        """How many ids each row has (int32 [n]; None: one), and the ids, int32, from a prepared column."""


class DenseKind(FeatureKind):
    """A kind that is a fixed number of floats per row."""

    @classmethod
    def dense_width(cls, sql_type: str) -> int:
        """Numbers of a row of a column of this SQL type."""
        return 1

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.feature.width

    @abstractmethod
    def numbers(self, column: pa.Array) -> np.ndarray:
        """float64 [n, width], NaN where missing."""

    def fit(self, numbers: np.ndarray) -> None:
        """Take note of training rows: what `numbers` gave of them."""

    def merge(self, other: DenseKind) -> None:
        """Take note of what `fit` told another object of the same feature, of other rows."""

    def fitted(self) -> Feature:
        """The feature with what `fit` learned."""
        return self.feature

    @abstractmethod
    def assemble(self, numbers: np.ndarray) -> pa.Array:
        """The prepared column."""

    @abstractmethod
    def read(self, column: pa.Array) -> np.ndarray:
        """float32 [n, width] from a prepared column."""
