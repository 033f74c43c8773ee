"""Which rows of a prepared split are in which segment, read from its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recmtl.encoding.decode import decode, read_values
from recmtl.errors import UserError, nearest
from recmtl.features import is_list
from recmtl.metrics.segments import LEFT_OUT, SegmentColumn
from recmtl.runtime.storage import local_path
from recmtl.schema import MISSING, UNSEEN, VOCABULARIES, Dataset, Feature, segment_column

MISSING_NAME, UNSEEN_NAME = "missing", "unseen"


def check_segments(dataset: Dataset, names: Iterable[str]) -> None:
    """Raise UserError unless rows of the data can be told apart by each of the names in ``metrics.by``."""
    features = {feature.name: feature for feature in dataset.features}
    known = [*dataset.segments, *(name for name, feature in features.items() if _has_values(dataset, feature))]
    for name in names:
        if name in known:
            continue
        if name not in features:
            raise UserError(f"metrics.by: {dataset.name!r} has no feature or segment {name!r}; {_meant(name, known)}")
        feature = features[name]
        kind = "hashed" if feature.table is not None and not is_list(feature) else f"of kind {feature.kind}"
        raise UserError(
            f"metrics.by: feature {name!r} is {kind}, and no value tells its rows apart; name a column of single "
            "values in the recipe's segments and prepare the data again"
        )


def _has_values(dataset: Dataset, feature: Feature) -> bool:
    """Whether each row has one value of a feature, and ids lead back to it."""
    return feature.table is not None and not is_list(feature) and not dataset.table(feature.table).hashed


def _meant(name: str, known: list[str]) -> str:
    return nearest(name, known) if known else "name columns of its query in the recipe's segments"


def read_segments(folder: Path, dataset: Dataset, split: str, names: Iterable[str]) -> dict[str, SegmentColumn]:
    """The columns of ``metrics.by``, which `check_segments` knows.

    Each is read twice, some rows at a time: to find its most frequent values, and which rows have them. Memory is that
    of the column's different values, and a byte for each row of the split.

    Raises:
        UserError: a file is missing or damaged.
    """
    found = {}
    for name in names:
        if name in dataset.segments:
            found[name] = _of_texts(partial(_batches, folder, dataset, split, segment_column(name)))
        else:
            feature = next(feature for feature in dataset.features if feature.name == name)
            found[name] = _of_ids(folder, dataset, feature, partial(_batches, folder, dataset, split, name))
    return found


Batches = Callable[[], Iterator[pa.Array]]
"""Reads a column of a split from its start, some rows at a time."""


def _batches(folder: Path, dataset: Dataset, split: str, column: str) -> Iterator[pa.Array]:
    for path in dataset.files(folder, split):
        try:
            with pq.ParquetFile(local_path(path)) as file:
                for batch in file.iter_batches(columns=[column]):
                    yield batch.column(0)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: column '{column}' cannot be read ({reason}); prepare the data again") from None


def _of_texts(batches: Batches) -> SegmentColumn:
    """Of a segment of the recipe: the values are text, null where missing."""
    counts: Counter[str | None] = Counter()
    for batch in batches():
        found = pc.value_counts(batch)
        counts.update(dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True)))
    missing = counts.pop(None, 0)
    texts = [*counts, None]
    kept, _, left_out = SegmentColumn.largest(np.array([*counts.values(), missing]))
    values = [texts[number] for number in kept.tolist()]
    known = pa.array(values, pa.string())
    codes = [pc.index_in(batch, value_set=known).fill_null(LEFT_OUT).to_numpy().astype(np.int8) for batch in batches()]
    return SegmentColumn(_joined(codes), [MISSING_NAME if text is None else text for text in values], left_out)


def _of_ids(folder: Path, dataset: Dataset, feature: Feature, batches: Batches) -> SegmentColumn:
    """Of a categorical feature: ids, which the data's vocabulary leads back to values."""
    table = dataset.table(str(feature.table))
    counts = np.zeros(table.rows, np.int64)
    for batch in batches():
        counts += np.bincount(batch.to_numpy(), minlength=table.rows)
    kept, code_of, left_out = SegmentColumn.largest(counts)
    values = decode(read_values(folder / VOCABULARIES, table.name), kept).to_pylist()
    special = {MISSING: MISSING_NAME, UNSEEN: UNSEEN_NAME}
    names = [special.get(number) or str(value) for number, value in zip(kept.tolist(), values, strict=True)]
    return SegmentColumn(_joined([code_of[batch.to_numpy()] for batch in batches()]), names, left_out)


def _joined(codes: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int8), *codes])
