"""How many values of each feature are missing, and how many have no id of their own, split by split.

Both become id 0. What is missing is counted in the examples, what has no id in the rows that are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa

from recmtl.data.dataset import SPLITS, Dataset, Feature
from recmtl.data.duck import quote
from recmtl.data.encode import list_of
from recmtl.data.examples import EXAMPLES, FLOATS, SPLIT
from recmtl.data.numbers import transformed
from recmtl.data.recipe import FeatureSpec, Recipe


class Coverage:
    """Counts by feature and split.

    Args:
        db: has the view `EXAMPLES`.
        recipe: says what is a feature.
        types: SQL types of the query's columns.
        dataset: what is known of the output.
    """

    def __init__(self, db: duckdb.DuckDBPyConnection, recipe: Recipe, types: dict[str, str], dataset: Dataset) -> None:
        self.dataset = dataset
        counts = ", ".join(_counts(feature, types[feature.column]) for feature in recipe.features)
        found = db.execute(f"select {SPLIT}, {counts} from {EXAMPLES} group by 1").fetchall()
        shape = (len(SPLITS), len(recipe.features))
        self.present = np.zeros(shape, np.int64)
        """[S, F]: rows whose value, or whole list, is not missing."""
        self.values = np.zeros(shape, np.int64)
        """[S, F]: values that are not missing; of lists their items."""
        self.encoded = np.zeros(shape, np.int64)
        """[S, F]: values among them that have an id."""
        for split, *numbers in found:
            self.present[split], self.values[split] = numbers[0::2], numbers[1::2]

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass on encoded rows, which come split after split, and count their ids."""
        ends = np.cumsum([self.dataset.rows[split] for split in SPLITS])
        start = 0
        for batch in batches:
            if batch.num_rows:
                encoded = self.encoded[np.searchsorted(ends, start, "right")]
                for i, feature in enumerate(self.dataset.features):
                    encoded[i] += _ids(batch.column(i), feature)
                start += batch.num_rows
            yield batch

    def features(self) -> tuple[Feature, ...]:
        """The features, each with its shares."""
        return tuple(self._shares(i, feature) for i, feature in enumerate(self.dataset.features))

    def _shares(self, i: int, feature: Feature) -> Feature:
        missing, unseen = {}, {}
        for split, name in enumerate(SPLITS):
            rows = self.dataset.rows[name]
            if not rows:
                continue
            missing[name] = (rows - int(self.present[split, i])) / rows
            if feature.kind != "numeric":
                values = int(self.values[split, i])
                among = values if feature.kind == "list" else rows
                unseen[name] = (values - int(self.encoded[split, i])) / max(among, 1)
        return replace(feature, missing=missing, unseen=unseen)


def _counts(feature: FeatureSpec, kind: str) -> str:
    """Two SQL aggregates: rows whose value is there, and values that are; of lists their items."""
    value = quote(feature.column)
    if feature.kind == "list":
        item = "item is not null" + (" and not isnan(item)" if kind.removesuffix("[]") in FLOATS else "")
        there = f"[item for item in {list_of(feature)} if {item}]"
        return f"count({value}), coalesce(sum(list_count({there})), 0)"
    if feature.kind == "numeric":
        value = transformed(feature)
    elif kind in FLOATS:
        value = f"case when not isnan({value}) then {value} end"
    return f"count({value}), count({value})"


def _ids(column: pa.Array, feature: Feature) -> int:
    """Ids other than 0 in a column; of numbers all."""
    if feature.kind == "list":
        return int(column.offsets[-1].as_py()) - int(column.offsets[0].as_py())
    return len(column) if feature.kind == "numeric" else int(np.count_nonzero(column.to_numpy()))
