"""One number per row."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recmtl.features.base import DenseKind
from recmtl.features.statistics import Moments, signed_log1p
from recmtl.schema import Feature, is_number

FLOAT32_MAX = 3.4e38


class Numeric(DenseKind):
    """log1p (of a negative number −log1p(−x)), standardised by mean and deviation of the training rows, or as it is.

    Null, NaN, infinite and what float32 cannot hold become 0 afterwards: with `standardize` the mean. A constant is 0.
    """

    options = ("transform",)

    def __init__(self, feature: Feature) -> None:
        super().__init__(feature)
        self._moments = Moments()

    @classmethod
    def check(cls, column: str, sql_type: str, separator: str) -> str | None:
        """It must be a number or a boolean."""
        return None if is_number(sql_type) else "; a numeric feature needs a number"

    @property
    def prepared_type(self) -> pa.DataType:
        """The number as the model receives it."""
        return pa.float32()

    def numbers(self, column: pa.Array) -> np.ndarray:
        """After log1p."""
        values = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            values = np.where(np.abs(values) < FLOAT32_MAX, values, np.nan)
        if self.feature.transform.startswith("log1p"):
            values = signed_log1p(values)
        return values[:, None]

    def fit(self, numbers: np.ndarray) -> None:
        """Sums for mean and deviation."""
        if self.feature.transform.endswith("standardize"):
            self._moments.add(numbers[:, 0])

    def merge(self, other: DenseKind) -> None:
        """Add its sums."""
        assert isinstance(other, Numeric)
        self._moments.merge(other._moments)

    def fitted(self) -> Feature:
        """With mean and deviation; a constant's is taken as 1."""
        moments = self._moments
        if not moments.count:
            return self.feature
        mean = moments.mean()
        tail = float(moments.exact_mean() - Fraction(mean))
        return replace(self.feature, mean=mean, mean_tail=tail, std=moments.deviation() or 1.0)

    def assemble(self, numbers: np.ndarray) -> pa.Array:
        """Standardised, kept within float32, what is missing filled with 0."""
        feature = self.feature
        values = (numbers[:, 0] - feature.mean - feature.mean_tail) / feature.std
        values = np.clip(np.where(np.isnan(values), 0.0, values), -FLOAT32_MAX, FLOAT32_MAX)
        return pa.array(values.astype(np.float32))

    def read(self, column: pa.Array) -> np.ndarray:
        """[n, 1]."""
        return column.to_numpy()[:, None]
