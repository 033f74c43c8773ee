"""Where a run stands: ``train_state.json`` of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from recmtl.runtime.storage import read_json

TRAIN_STATE = "train_state.json"


@dataclass
class TrainState:
    """Where a run stands."""

    epoch: int = 0
    """Epochs that are complete."""
    step_in_epoch: int = 0
    """Batches of the running epoch that are done."""
    step: int = 0
    """Steps in all."""
    seconds: float = 0.0
    """Time spent in training and validation so far."""
    train_seconds: float = 0.0
    """Time spent in training alone."""
    wait_seconds: float = 0.0
    """Of these, time that this rank's host stood still for the reader."""
    checkpoint_seconds: float = 0.0
    """Time that training stood still for checkpoints, the one that holds this state left out."""
    examples: int = 0
    """Rows trained on."""
    best_loss: float | None = None
    """Lowest value so far of what is monitored: the validation loss, summed over tasks by the recipe's weights, or
    minus the sum of the metrics of ``metrics.monitor``, those subtracted of which lower is better."""
    best_epoch: int = 0
    """Epoch of `best_loss`, counted from 1; 0: none yet."""
    best_step: int = 0
    """Step after which the model had `best_loss`: that of its checkpoint."""
    bad_validations: int = 0
    """Validations that counted since then: those of complete epochs, and of ``training.validate_every_steps``."""
    validated_step: int = 0
    """Step of the latest validation that counted."""
    val: dict[str, Any] = field(default_factory=dict)
    """Validation metrics of the best model."""
    val_bins: dict[str, Any] = field(default_factory=dict)
    """Its calibration bins."""
    complete: dict[str, Any] | None = None
    """The fields of `BEST` by validations that count alone, where a part of an epoch is better than all of those; None:
    it is not. A run that goes on goes on from these, as if it had not stopped in the midst of an epoch."""
    start_from: dict[str, Any] | None = None
    """The run that this one started from: its folder's name, its data's fingerprint, the step of its checkpoint."""
    steps_before: int = 0
    """Steps of the runs that this one started from, one after the other: optimisers carry their states on, and go on
    counting."""
    first_rows: dict[str, int] = field(default_factory=dict)
    """Rows that tables had at the start of the first run of a line of runs, each of which started from the one before:
    they set the scale of new rows. Empty in a first run."""

    def take_part_for_best(self) -> None:
        """Before a part of an epoch becomes the best: keep what the validations that count have come to."""
        self.complete = {name: getattr(self, name) for name in BEST}

    def forget_part(self) -> None:
        """The epoch that a run stopped in the midst of goes on: its part no longer counts."""
        for name, value in (self.complete or {}).items():
            setattr(self, name, value)
        self.complete = None

    def best_steps(self) -> set[int]:
        """Steps of the checkpoints that must stay: of the best model, and of what a run that goes on holds for best."""
        return {self.best_step, (self.complete or {}).get("best_step", 0)}


BEST = ("best_loss", "best_epoch", "best_step", "val", "val_bins")
"""Fields of `TrainState` that tell the best model."""


def read_state(path: Path) -> TrainState | None:
    """Where the run stood at a checkpoint; None: the file is damaged."""
    try:
        described = read_json(path / TRAIN_STATE)
        return TrainState(**{field.name: described[field.name] for field in fields(TrainState)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
