"""The second half of encoding: statistics of the training rows, then ids; rows go into buckets to be shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recmtl.data.prepare.examples import SEGMENT
from recmtl.data.prepare.factorized import Batch, FactorizedRows
from recmtl.data.prepare.labels import numbers, read_labels
from recmtl.data.prepare.shards import schema
from recmtl.data.prepare.tasks import is_kept, row_weights
from recmtl.data.recipe import Recipe
from recmtl.encoding.encoder import NO_VALUE, Encoder
from recmtl.encoding.hashing import hash_texts
from recmtl.schema import (
    GROUP_COLUMN,
    MISSING,
    NO_USER,
    SPLITS,
    UNSEEN,
    WEIGHT_COLUMN,
    Dataset,
    Feature,
    label_column,
    label_type,
    oracle_column,
    segment_column,
    weight_column,
)


class FeatureStatistics:
    """What training rows say of the features: mean and deviation of numbers, mean and greatest length of lists.

    Args:
        encoder: knows the features; its vocabularies are not needed.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._features, self._dense = encoder.features, encoder.dense_kinds
        self._lists = [kind for kind in encoder.table_kinds if kind.is_list]
        self._items = dict.fromkeys((kind.feature.name for kind in self._lists), 0)
        self._longest = dict(self._items)
        self._training_rows = 0

    def add(self, batch: Batch, splits: np.ndarray) -> None:
        """Take in a batch, whose splits are given as indices into `SPLITS`, uint8 [n]."""
        training = splits == 0
        self._training_rows += int(training.sum())
        for dense in self._dense:
            dense.fit(batch.features.numbers[dense.feature.name][training])
        for kind in self._lists:
            name, lengths = kind.feature.name, batch.features.lengths[kind.feature.name]
            counted = np.repeat(training, lengths)
            if not kind.keeps_missing:
                counted &= batch.features.codes[name] != NO_VALUE
            self._items[name] += int(counted.sum())
            self._longest[name] = max(self._longest[name], int(lengths[training].max(initial=0)))

    def merge(self, other: FeatureStatistics) -> None:
        """Add what other rows say."""
        self._training_rows += other._training_rows
        for own, found in zip(self._dense, other._dense, strict=True):
            own.merge(found)
        for name, items in other._items.items():
            self._items[name] += items
            self._longest[name] = max(self._longest[name], other._longest[name])

    def features(self) -> tuple[Feature, ...]:
        """The features with these statistics."""
        fitted = {dense.feature.name: dense.fitted() for dense in self._dense}
        for kind in self._lists:
            name = kind.feature.name
            mean_length = self._items[name] / max(self._training_rows, 1)
            fitted[name] = replace(kind.feature, mean_length=mean_length, longest=self._longest[name])
        return tuple(fitted.get(feature.name, feature) for feature in self._features)


@dataclass
class Shares:
    """How much of every feature is missing, and how much unseen, by split."""

    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        self._rows = np.zeros(len(SPLITS), np.int64)
        self._values = {name: np.zeros(len(SPLITS), np.int64) for name in names}
        self._missing = {name: np.zeros(len(SPLITS), np.int64) for name in names}
        self._unseen = {name: np.zeros(len(SPLITS), np.int64) for name in names}

    def add(self, encoder: Encoder, batch: Batch, ids: dict[str, np.ndarray], splits: np.ndarray) -> None:
        """Count the rows of a batch, whose splits are given, uint8 [n]."""
        self._rows += _count(splits)
        for name, found in ids.items():
            lengths = batch.features.lengths.get(name)
            of_values = splits if lengths is None else np.repeat(splits, lengths)
            known = found != MISSING
            self._unseen[name] += _count(of_values[found == UNSEEN])
            if lengths is None:
                self._missing[name] += _count(splits[~known])
                self._values[name] += _count(splits)
            else:
                row_of_values = np.repeat(np.arange(len(lengths)), lengths)
                items = np.bincount(row_of_values[known], minlength=len(lengths))
                self._missing[name] += _count(splits[items == 0])
                self._values[name] += _count(of_values[known])
        for dense in encoder.dense_kinds:
            numbers = batch.features.numbers[dense.feature.name]
            self._missing[dense.feature.name] += _count(splits[np.isnan(numbers).all(axis=1)])

    def merge(self, other: Shares) -> None:
        """Add the counts of other rows."""
        self._rows += other._rows
        for own, found in (
            (self._values, other._values),
            (self._missing, other._missing),
            (self._unseen, other._unseen),
        ):
            for name, counts in found.items():
                own[name] += counts

    def describe(self, feature: Feature) -> Feature:
        """The feature with its shares; no entry for a split without rows."""
        there = [split for split, rows in zip(SPLITS, self._rows, strict=True) if rows]
        missing = _share(self._missing[feature.name], self._rows)
        unseen = _share(self._unseen[feature.name], self._values[feature.name])
        return replace(
            feature,
            missing={split: missing[split] for split in there},
            unseen={split: unseen[split] for split in there} if feature.table else {},
        )


def _count(splits: np.ndarray) -> np.ndarray:
    return np.bincount(splits, minlength=len(SPLITS))


def _share(part: np.ndarray, whole: np.ndarray) -> dict[str, float]:
    return {split: int(n) / int(of) if of else 0.0 for split, n, of in zip(SPLITS, part, whole, strict=True)}


class Buckets(Protocol):
    """Where encoded rows go."""

    def write(self, rows: pa.RecordBatch, splits: np.ndarray, hashes: np.ndarray) -> None:
        """Take rows [n] of these splits (uint8) and hashes (uint64)."""


def encode_into_buckets(
    rows: FactorizedRows,
    encoder: Encoder,
    recipe: Recipe,
    dataset: Dataset,
    shares: Shares,
    splits: np.ndarray,
    hashes: np.ndarray,
    buckets: Buckets,
) -> Iterator[int]:
    """Write every row, encoded, into the bucket of its split and hash; yields the number of rows done.

    Args:
        rows: of all splits.
        encoder: with statistics and vocabularies.
        recipe: names the columns of labels, true probabilities and users.
        dataset: says which of them are written.
        shares: counts as the rows go by.
        splits: index into `SPLITS` of every row, uint8.
        hashes: of every row, uint64; decides the order within a split.
        buckets: takes the rows.
    """
    layout, share = schema(dataset), recipe.sampling.keep_negatives
    for batch in rows.batches():
        ids = encoder.look_up(batch.features)
        split, keys = splits[batch.rows], hashes[batch.rows]
        shares.add(encoder, batch, ids, split)
        columns = encoder.assemble(batch.features, ids) | _other_columns(recipe, dataset, batch.columns)
        labels = read_labels(recipe, batch.columns) if dataset.row_weight else None
        if labels is not None:
            columns[WEIGHT_COLUMN] = _weight(recipe, batch.columns, row_weights(labels, split, share))
        encoded = pa.RecordBatch.from_arrays([columns[field.name] for field in layout], schema=layout)
        if labels is not None and share < 1:
            kept = is_kept(labels, split, keys, share)
            encoded, split, keys = encoded.filter(pa.array(kept)), split[kept], keys[kept]
        buckets.write(encoded, split, keys)
        yield batch.rows.stop


def _other_columns(recipe: Recipe, dataset: Dataset, columns: pa.RecordBatch) -> dict[str, pa.Array]:
    """Labels, true probabilities, weights for a task, segments and users as they are written, by name."""
    found = {}
    for task, spec in zip(dataset.tasks, recipe.tasks, strict=True):
        found[label_column(task.name)] = columns.column(spec.label).cast(pa.float64()).cast(label_type(task))
        if task.oracle and spec.oracle:
            found[oracle_column(task.name)] = columns.column(spec.oracle).cast(pa.float64()).cast(pa.float32())
        if spec.row_weight is not None:
            found[weight_column(task.name)] = pa.array(numbers(columns.column(spec.row_weight)).astype(np.float32))
    for name in recipe.segments:
        found[segment_column(name)] = columns.column(SEGMENT + name).cast(pa.string())
    if recipe.group is not None:
        found[GROUP_COLUMN] = pa.array(_user_numbers(columns.column(recipe.group)))
    return found


def _weight(recipe: Recipe, columns: pa.RecordBatch, weights: np.ndarray) -> pa.Array:
    """The weight of every row for all tasks: the recipe's, times the given ones [n]."""
    if recipe.weight is not None:
        weights = weights * numbers(columns.column(recipe.weight))
    return pa.array(weights.astype(np.float32))


def _user_numbers(users: pa.Array) -> np.ndarray:
    """The users as numbers from 0, hashes of the values; `NO_USER` where it is missing."""
    encoded = users.dictionary_encode()
    distinct = encoded.dictionary
    if pa.types.is_floating(distinct.type):
        # −0 + 0 is 0, the same user.
        distinct = pc.if_else(pc.is_nan(distinct), pa.scalar(None, distinct.type), pc.add(distinct, 0.0))
    texts = distinct.cast(pa.large_binary() if pa.types.is_binary(distinct.type) else pa.large_string())
    hashes = hash_texts(pc.fill_null(texts, "")) >> np.uint64(1)
    numbers = np.where(distinct.is_valid().to_numpy(zero_copy_only=False), hashes.astype(np.int64), NO_USER)
    return np.append(numbers, NO_USER)[pc.fill_null(encoded.indices, -1).to_numpy()]
