"""The metrics by name: which a task of each kind has, which way is better, and what results say of them."""

from __future__ import annotations

from typing import Any

from recmtl.schema import TaskKind

Values = dict[str, Any]
"""The metrics of one task by name: numbers, None where undefined, and the list ``auc_folds``."""
Bins = dict[str, list[float]]
"""The calibration bins of one task by rising prediction: ``rows``, mean ``prediction`` and mean ``label`` of each, and
of a binary task ``positives``."""

BINARY = ("auc", "gauc", "oracle_auc", "logloss", "ne", "calibration")
NUMBERS = ("loss", "mae", "rmse", "r2", "xauc", "bias")
METRICS: dict[TaskKind, tuple[str, ...]] = {"binary": BINARY, "regression": NUMBERS, "duration": NUMBERS}
"""Names by kind of task, in the order of tables."""
ALL = frozenset((*BINARY, *NUMBERS))
ALWAYS = frozenset(("logloss", "loss"))
"""What is measured whether it is asked for or not: a model that diverged is told by it."""
LOSS: dict[TaskKind, str] = {"binary": "logloss", "regression": "loss", "duration": "loss"}
"""The metric that is the mean of what training minimises, by kind of task."""
SIGNS = {"auc": 1, "gauc": 1, "r2": 1, "xauc": 1, "logloss": -1, "loss": -1, "ne": -1, "mae": -1, "rmse": -1}
"""1: higher is better, −1: lower is. Calibration and bias are best at 1, and the oracle's AUC is not the model's."""

OF_BINARY = (
    *("auc", "auc_se", "auc_folds", "gauc", "oracle_auc", "logloss", "logloss_se", "ne", "calibration"),
    *("base_rate", "positives", "rows"),
)
OF_NUMBERS = ("loss", "mae", "mae_se", "rmse", "rmse_se", "r2", "r2_se", "xauc", "bias", "mean_label", "rows")
VALUES: dict[TaskKind, tuple[str, ...]] = {"binary": OF_BINARY, "regression": OF_NUMBERS, "duration": OF_NUMBERS}
"""What results say of a task, in their order."""
SEGMENT_METRICS = frozenset(("auc", "logloss", "calibration", "mae", "rmse", "bias"))
"""What is measured of every segment of the rows."""
COUNTS = frozenset(("base_rate", "positives", "mean_label", "rows"))
"""What is no metric of the predictions, and always said."""


def metric_of(value: str) -> str:
    """The metric that a value of results belongs to: that of a standard error, or of the AUC without each fold."""
    return value.removesuffix("_se").removesuffix("_folds")


def is_wanted(value: str, include: frozenset[str]) -> bool:
    """Whether results say a value where these metrics are asked for."""
    return value in COUNTS or metric_of(value) in include
