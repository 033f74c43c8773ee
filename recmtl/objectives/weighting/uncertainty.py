"""Weighting by uncertainty (Kendall et al., CVPR 2018, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recmtl.config import WeightingConfig
from recmtl.objectives.weighting.base import Weighting


class Uncertainty(Weighting):
    """loss = Σ_t a_t (e^{−s_t} L_t + s_t / 2), s [T] learned, 0 at the start.

    s is the logarithm of a task's noise: for a loss that stays the same the optimum is s = ln 2L, where the task's
    term weighs e^{−s} L = 1/2. So it evens out the scales of the losses. a multiplies the whole term, or s would
    absorb it. A task of which no row of the step has a label has no term: its s stays.
    """

    def __init__(self, config: WeightingConfig, task_weights: Tensor) -> None:
        super().__init__(config, task_weights)
        self.log_variance = nn.Parameter(torch.zeros_like(task_weights))

    def begin_step(self, observed: Tensor) -> None:
        """The factors e^{−s}."""
        super().begin_step(observed)
        self.factors.copy_(torch.exp(-self.log_variance.detach()))

    def combine(self, losses: Tensor, pooled: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """The loss; see the class."""
        precision = torch.exp(-self.log_variance)
        return (self.task_weights * self.observed * (precision * losses + self.log_variance / 2)).sum()
