"""Learning rates over the steps."""

from __future__ import annotations

import math

from torchrec.optim.keyed import CombinedOptimizer

from recmtl.config import TrainingConfig
from recmtl.errors import UserError


class Schedule:
    r"""All learning rates rise linearly from 0 over the first steps, then stay, or fall to 0 at the end.

    At step s, counted from 0, of S steps with W of warm-up they are the full ones times min(1, (s + 1)/W) and, with
    p = (s − W)/(S − W) cut to 0 … 1, linear: 1 − p; cosine: (1 + cos πp)/2 (Loshchilov and Hutter, *SGDR*, ICLR 2017,
    without restarts); constant: 1. After S steps a rate that falls stays at 0.

    A function of the step alone: there is nothing to save. The fused embedding optimiser takes the rate over in
    `zero_grad`, before the backward pass that applies it.

    Args:
        optimizer: the combined optimiser, at its full rates.
        config: the `training` section of the configuration.
        steps_in_epoch: batches in an epoch.

    Raises:
        UserError: the warm-up leaves no steps for rates to fall, or there are steps for rates that do not fall.
    """

    def __init__(self, optimizer: CombinedOptimizer, config: TrainingConfig, steps_in_epoch: int) -> None:
        self.kind, self.warmup, self.steps = config.schedule, config.warmup_steps, config.schedule_steps
        if not self.steps:
            whole = config.max_epochs * steps_in_epoch
            self.steps = min(whole, config.max_steps or whole)
        falls = self.kind != "constant"
        if config.schedule_steps and not falls:
            raise UserError(
                f"training.schedule_steps: {config.schedule_steps:,} with training.schedule constant, whose rates do "
                "not fall; choose linear or cosine, or leave it out"
            )
        if falls and self.warmup >= self.steps:
            raise UserError(
                f"training.warmup_steps: fewer than the {self.steps:,} steps after which rates are 0 "
                f"(training.schedule {self.kind}), not {self.warmup:,}"
            )
        self.scale = 1.0
        """Of the latest step: its rates over the full ones."""
        change = falls or self.warmup
        self.groups = [(g, g["lr"]) for _, o in optimizer.optimizers for g in o.param_groups] if change else []

    def set(self, step: int) -> None:
        """Set the rates for step `step`, counted from 0."""
        self.scale = min(1.0, (step + 1) / max(1, self.warmup)) * self._fall(step)
        for group, rate in self.groups:
            group["lr"] = rate * self.scale

    def _fall(self, step: int) -> float:
        if self.kind == "constant":
            return 1.0
        passed = min(1.0, max(0, step - self.warmup) / (self.steps - self.warmup))
        return 1 - passed if self.kind == "linear" else (1 + math.cos(math.pi * passed)) / 2
