"""Learning rates over the steps."""

from __future__ import annotations

from torchrec.optim.keyed import CombinedOptimizer


class Warmup:
    """Both learning rates rise linearly from 0 over the first steps, then stay.

    A function of the step alone: there is nothing to save. The fused embedding optimiser takes the rate over in
    `zero_grad`, before the backward pass that applies it.

    Args:
        optimizer: the combined optimiser, at its full rates.
        steps: length of the rise; 0: none.
    """

    def __init__(self, optimizer: CombinedOptimizer, steps: int) -> None:
        self.steps = steps
        self.scale = 1.0
        """Of the latest step: its rates over the full ones."""
        self.groups = [(g, g["lr"]) for _, o in optimizer.optimizers for g in o.param_groups] if steps else []

    def set(self, step: int) -> None:
        """Set the rates for step `step`, counted from 0."""
        self.scale = min(1.0, (step + 1) / max(1, self.steps))
        for group, rate in self.groups:
            group["lr"] = rate * self.scale
