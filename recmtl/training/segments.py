"""Which rows of a prepared split are in which segment, read from its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.encoding.decode import decode, read_values
from recmtl.errors import UserError, nearest
from recmtl.features import is_list
from recmtl.metrics.segments import SegmentColumn
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

    Raises:
        UserError: a file is missing or damaged.
    """
    found = {}
    for name in names:
        if name in dataset.segments:
            found[name] = _of_texts(_read(folder, dataset, split, segment_column(name)))
        else:
            feature = next(feature for feature in dataset.features if feature.name == name)
            found[name] = _of_ids(folder, dataset, feature, _read(folder, dataset, split, name))
    return found


def _read(folder: Path, dataset: Dataset, split: str, column: str) -> pa.ChunkedArray:
    parts = []
    for path in dataset.files(folder, split):
        try:
            parts.append(pq.read_table(local_path(path), columns=[column]).column(0))
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: column '{column}' cannot be read ({reason}); prepare the data again") from None
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks])


def _of_texts(column: pa.ChunkedArray) -> SegmentColumn:
    """Of a segment of the recipe: the values are text, null where missing."""
    encoded = column.combine_chunks().dictionary_encode()
    texts = [*encoded.dictionary.to_pylist(), MISSING_NAME]
    numbers = encoded.indices.fill_null(len(texts) - 1).to_numpy()
    kept, codes, left_out = SegmentColumn.largest(numbers, np.bincount(numbers, minlength=len(texts)))
    return SegmentColumn(codes, [texts[number] for number in kept.tolist()], left_out)


def _of_ids(folder: Path, dataset: Dataset, feature: Feature, column: pa.ChunkedArray) -> SegmentColumn:
    """Of a categorical feature: ids, which the data's vocabulary leads back to values."""
    ids = column.to_numpy()
    table = dataset.table(str(feature.table))
    kept, codes, left_out = SegmentColumn.largest(ids, np.bincount(ids, minlength=table.rows))
    values = decode(read_values(folder / VOCABULARIES, table.name), kept).to_pylist()
    special = {MISSING: MISSING_NAME, UNSEEN: UNSEEN_NAME}
    names = [special.get(number) or str(value) for number, value in zip(kept.tolist(), values, strict=True)]
    return SegmentColumn(codes, names, left_out)
