"""Dynamic weight average (Liu et al., CVPR 2019, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from recmtl.config import WeightingConfig
from recmtl.objectives.weighting.base import Weighting


class DWA(Weighting):
    """loss = Σ_t a_t w_t L_t with w = T · softmax(r / τ), r_t = L_t(epoch − 1) / L_t(epoch − 2).

    Tasks whose loss falls more slowly weigh more. L_t(e) is the mean global loss over the steps of epoch e; all epochs
    have as many steps, so sums do. w is 1 in the first two epochs.
    """

    def __init__(self, config: WeightingConfig, task_weights: Tensor) -> None:
        super().__init__(config, task_weights)
        self.sums: Tensor
        """Losses summed over the steps of the running epoch, the one before and the one before that [3, T]."""
        self.register_buffer("sums", torch.zeros(3, len(task_weights)))

    def begin_step(self) -> None:
        """The factors, which change with the epoch."""
        _, last, before = self.sums
        rates = torch.where(before > 0, last / before, 1.0)
        self.factors.copy_(len(rates) * torch.softmax(rates / self.config.temperature, dim=0))

    def observe(self, losses: Tensor) -> None:
        """Add to the running epoch."""
        self.sums[0] += losses

    def end_epoch(self) -> None:
        """The running epoch becomes the last one."""
        self.sums.copy_(self.sums.roll(1, dims=0))
        self.sums[0] = 0
