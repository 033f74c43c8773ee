"""Which rows are kept, and what the kept ones say of the tasks: counts by split, mean labels, scale of a target."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recmtl.data.prepare.labels import Labels, read_labels
from recmtl.data.recipe import Recipe, TaskSpec
from recmtl.errors import UserError
from recmtl.features.statistics import ExactSum, Moments, signed_log1p
from recmtl.schema import SPLITS, Task

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: products with it are spread evenly whatever the factors (Knuth, The Art of Computer
Programming 3, section 6.4). The hash itself deals rows into splits, so that it would not do for a second choice."""


def is_kept(labels: Labels, splits: np.ndarray, hashes: np.ndarray, share: float) -> np.ndarray:
    """Whether rows stay: all but a part of the training rows without a positive label, chosen by their hash.

    Args:
        labels: of the rows.
        splits: index into `SPLITS` of every row, uint8 [n].
        hashes: of the rows, uint64 [n].
        share: of such rows to keep.
    """
    chosen = (hashes * MULTIPLIER) >> np.uint64(11) < np.uint64(round(share * 2**53))
    return (splits != 0) | labels.positive | chosen


def row_weights(labels: Labels, splits: np.ndarray, share: float) -> np.ndarray:
    """What rows weigh for each task beside the recipe's weights, [n]: 1, or what a kept negative stands for."""
    return np.where((splits != 0) | labels.positive, 1.0, 1 / share)


class TaskStatistics:
    """What the labels of some rows, or of all, say of the tasks.

    Args:
        recipe: names the columns and says what is kept.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.counts = np.zeros(len(SPLITS), np.int64)
        self._of_tasks = [_Statistics(spec) for spec in recipe.tasks]
        self._places = {spec.name: place for place, spec in enumerate(recipe.tasks)}

    def add(self, columns: pa.RecordBatch, splits: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Take in rows whose labels were checked; returns which are kept, bool [n].

        Args:
            columns: with labels and weights.
            splits: index into `SPLITS` of every row, uint8 [n].
            hashes: of every row, uint64 [n].
        """
        share = self.recipe.sampling.keep_negatives
        labels = read_labels(self.recipe, columns)
        kept = is_kept(labels, splits, hashes, share)
        weights = labels.weights * row_weights(labels, splits, share)[:, None]
        split = splits[kept]
        self.counts += np.bincount(split, minlength=len(SPLITS))
        for place, found in enumerate(self._of_tasks):
            parent = None if found.spec.parent is None else labels.values[kept, self._places[found.spec.parent]]
            found.add(labels.values[kept, place], weights[kept, place], split, parent)
        return kept

    def merge(self, other: TaskStatistics) -> None:
        """Add what other rows say."""
        self.counts += other.counts
        for own, found in zip(self._of_tasks, other._of_tasks, strict=True):
            own.merge(found)

    def describe(
        self, oracles: frozenset[str], *, all_labelled: bool = True
    ) -> tuple[dict[str, int], tuple[Task, ...]]:
        """Rows that are kept by split, and the tasks with what their labels are.

        Args:
            oracles: tasks whose true probabilities are known.
            all_labelled: every task must have a label that weighs something in a training row.

        Raises:
            UserError: no row is for training, or a task has no label there, or no weight.
        """
        by_split = dict(zip(SPLITS, self.counts.tolist(), strict=True))
        if not by_split["train"]:
            raise UserError(f"{self.recipe.origin}: [split]: no row is left for training; change the split")
        return by_split, tuple(found.task(self.recipe.origin, oracles, all_labelled) for found in self._of_tasks)


class _Statistics:
    """What the labels of one task are."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.observed = np.zeros(len(SPLITS), np.int64)
        self.weights = [ExactSum() for _ in SPLITS]
        self.sums = [ExactSum() for _ in SPLITS]
        self.targets = Moments()
        """Of the training rows, after the transform. They only set a scale: weights have no part in them."""
        self.closed = self.closed_with_label = 0
        """Rows in which the parent's label says that the task could not happen, and those of them that have a label."""

    def add(self, values: np.ndarray, weights: np.ndarray, splits: np.ndarray, parent: np.ndarray | None) -> None:
        """Take in labels, their weights, splits and the labels of the parent, each [n]."""
        known = ~np.isnan(values)
        if parent is not None:
            closed = parent == (0 if self.spec.relation == "given" else 1)
            self.closed += int(closed.sum())
            self.closed_with_label += int((closed & known).sum())
        self.observed += np.bincount(splits[known], minlength=len(SPLITS))
        for number in range(len(SPLITS)):
            some = known & (splits == number)
            self.weights[number].add(weights[some])
            self.sums[number].add(weights[some] * values[some])
        if self.spec.kind == "regression":
            labels = values[known & (splits == 0)]
            self.targets.add(signed_log1p(labels) if self.spec.transform == "log1p" else labels)

    def merge(self, other: _Statistics) -> None:
        """Add what other rows say."""
        self.observed += other.observed
        for own, found in zip(self.weights + self.sums, other.weights + other.sums, strict=True):
            own.merge(found)
        self.targets.merge(other.targets)
        self.closed += other.closed
        self.closed_with_label += other.closed_with_label

    def task(self, origin: str, oracles: frozenset[str], labelled: bool) -> Task:
        """The task.

        Raises:
            UserError: it is to be labelled, and the training rows have no label of it, or none that weighs anything.
        """
        spec = self.spec
        if labelled and not self.observed[0]:
            raise UserError(f"{origin}: [[task]] {spec.name!r}: label {spec.label!r} is null in all training rows")
        weights = [found.total() for found in self.weights]
        if labelled and not weights[0]:
            raise UserError(
                f"{origin}: [[task]] {spec.name!r}: all training rows that have a label weigh 0; mend the weights"
            )
        means = {
            split: float(total.total() / weight)
            for split, total, weight in zip(SPLITS, self.sums, weights, strict=True)
            if weight
        }
        mean, std = 0.0, 1.0
        if spec.kind == "duration":
            # Where nobody stayed at all, there is no scale.
            mean = means.get("train") or 1.0
        elif spec.kind == "regression":
            mean, std = self.targets.mean(), self.targets.deviation() or 1.0
        return Task(
            spec.name,
            kind=spec.kind,
            weight=spec.weight,
            parent=spec.parent,
            relation=spec.relation,
            conditional=self.closed > 0 == self.closed_with_label,
            loss=spec.loss or "squared",
            transform=spec.transform or "none",
            mean=mean,
            std=std,
            oracle=spec.name in oracles,
            row_weight=spec.row_weight is not None,
            observed=dict(zip(SPLITS, self.observed.tolist(), strict=True)),
            base_rate=means,
            label=spec.label,
        )
