"""The metrics by name: which a task of each kind has, and which way is better."""

from __future__ import annotations

from recmtl.schema import TaskKind

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
SEGMENT_METRICS = frozenset(("auc", "logloss", "calibration", "mae", "rmse", "bias"))
"""What is measured of every segment of the rows."""
SEGMENT_VALUES = frozenset(
    (*(key for name in SEGMENT_METRICS for key in (name, f"{name}_se")), "base_rate", "positives", "mean_label", "rows")
)
"""What results say of every segment."""
