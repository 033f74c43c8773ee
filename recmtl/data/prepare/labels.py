"""Labels and weights of rows, read from the columns that the recipe names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recmtl.data.recipe import Recipe


@dataclass(frozen=True)
class Labels:
    """What is to be learned from some rows (n rows, T tasks)."""

    values: np.ndarray
    """float64 [n, T]; NaN where there is no label."""
    weights: np.ndarray
    """float64 [n, T]: of the row for the task."""

    @property
    def known(self) -> np.ndarray:
        """Bool [n, T]: where there is a label."""
        return ~np.isnan(self.values)

    @property
    def positive(self) -> np.ndarray:
        """Bool [n]: whether a label is above 0."""
        return np.asarray((self.values > 0).any(axis=1))


def read_labels(recipe: Recipe, columns: pa.RecordBatch) -> Labels:
    """Labels and weights as the recipe's columns hold them, which `recmtl.data.prepare.label_checks` found right."""
    values = np.stack([numbers(columns.column(task.label)) for task in recipe.tasks], axis=1)
    weights = np.ones_like(values)
    if recipe.weight is not None:
        weights *= numbers(columns.column(recipe.weight))[:, None]
    for place, task in enumerate(recipe.tasks):
        if task.row_weight is not None:
            weights[:, place] *= numbers(columns.column(task.row_weight))
    return Labels(values, weights)


def numbers(column: pa.Array) -> np.ndarray:
    """A column as float64, null as NaN."""
    return pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)


def without_labels(recipe: Recipe, columns: pa.RecordBatch) -> pa.Array | None:
    """Whether each row has no label of any task; None where all rows have one."""
    nulls = [columns.column(task.label) for task in recipe.tasks]
    if not all(column.null_count for column in nulls):
        return None
    none = nulls[0].is_null()
    for column in nulls[1:]:
        none = pc.and_(none, column.is_null())
    return none if pc.any(none).as_py() else None
