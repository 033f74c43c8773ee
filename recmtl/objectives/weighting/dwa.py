"""Dynamic weight average (Liu et al., CVPR 2019, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from recmtl.config import WeightingConfig
from recmtl.objectives.weighting.base import Weighting


class DWA(Weighting):
    """loss = Σ_t a_t w_t L_t with w = T · softmax(r / τ), r_t = L_t(epoch − 1) / L_t(epoch − 2).

    Tasks whose loss falls more slowly weigh more. L_t(e) is the mean global loss over the steps of epoch e in which a
    row had a label of the task. w is 1 in the first two epochs, and r_t is 1 where a task had no label in one of both.
    """

    def __init__(self, config: WeightingConfig, task_weights: Tensor) -> None:
        super().__init__(config, task_weights)
        self.sums: Tensor
        """Losses summed over the steps of the running epoch, the one before and the one before that [3, T]."""
        self.steps: Tensor
        """How many steps that were [3, T]."""
        for name in ("sums", "steps"):
            self.register_buffer(name, torch.zeros(3, len(task_weights)))

    def begin_step(self, observed: Tensor) -> None:
        """The factors, which change with the epoch."""
        super().begin_step(observed)
        _, last, before = self.sums / self.steps.clamp(min=1)
        rates = torch.where((last > 0) & (before > 0), last / before, 1.0)
        self.factors.copy_(len(rates) * torch.softmax(rates / self.config.temperature, dim=0))

    def observe(self, losses: Tensor, steps: Tensor) -> None:
        """Add to the running epoch."""
        self.sums[0] += losses
        self.steps[0] += steps

    def end_epoch(self) -> None:
        """The running epoch becomes the last one."""
        for total in (self.sums, self.steps):
            total.copy_(total.roll(1, dims=0))
            total[0] = 0
