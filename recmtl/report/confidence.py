"""How sure an AUC is, and which models the test rows cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recmtl.metrics.jackknife import Folds, average, difference, standard_error
from recmtl.report.rows import Row
from recmtl.report.runs import Value, metric

ERRORS = 2
"""Standard errors of a difference up to which two models count as equal."""


@dataclass(frozen=True)
class Gap:
    """A row's AUC less that of the best row on the same test rows."""

    difference: float
    """0 or less."""
    error: float
    """Its standard error. What both owe to the test rows falls out; how far training again with another seed would
    move them is not in it."""

    @property
    def is_open(self) -> bool:
        """Whether chance among the test rows may have made the difference."""
        return -self.difference <= ERRORS * self.error


def auc_error(row: Row, task: str) -> Value:
    """Standard error of a row's AUC: over the choice of test rows, not over seeds."""
    folds = auc_folds(row, task)
    return None if folds is None else standard_error(folds)


def single_error(row: Row, task: str, name: str) -> Value:
    """Standard error of a metric other than the AUC, of a single run."""
    return metric(task, f"{name}_se")(row.runs[0]) if len(row.runs) == 1 else None


def auc_folds(row: Row, task: str) -> Folds | None:
    """The AUC without each fold of the test rows, mean over the runs that have an AUC; None where one lacks them."""
    runs = [run for run in row.runs if metric(task, "auc")(run) is not None]
    folds = [run.auc_folds[task] for run in runs if task in run.auc_folds]
    return average(folds) if folds and len(folds) == len(runs) and _are_of_the_same_rows(folds) else None


def gaps(rows: list[Row], task: str) -> list[Gap | None]:
    """Every row's gap to the best; None where it is not known, or where there is but one row."""
    means = [row.mean(metric(task, "auc")) for row in rows]
    known = [mean for mean in means if mean is not None]
    if len(known) < 2:
        return [None] * len(rows)
    best = max(known)
    reference = auc_folds(rows[means.index(best)], task)
    return [
        None if mean is None else _gap(mean - best, reference, auc_folds(row, task))
        for row, mean in zip(rows, means, strict=True)
    ]


def _gap(less: float, reference: Folds | None, folds: Folds | None) -> Gap | None:
    if reference is None or folds is None or not _are_of_the_same_rows([reference, folds]):
        return None
    error = standard_error(difference(folds, reference))
    return None if error is None else Gap(less, error)


def _are_of_the_same_rows(folds: Sequence[Folds]) -> bool:
    """Whether the same folds are empty: else they come from other test rows."""
    return len({tuple(value is None for value in values) for values in folds}) == 1
