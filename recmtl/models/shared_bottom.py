"""Shared bottom: one MLP for all tasks, one tower each (Caruana, Multitask Learning, 1997)."""

from __future__ import annotations

from torch import Tensor

from recmtl.config.models import SharedBottomConfig
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.layers import MLPs, Towers


class SharedBottom(Model):
    """h = MLP(x); logit_t = tower_t(h)."""

    def __init__(self, config: SharedBottomConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.bottom = MLPs(1, inputs.width, config.bottom, dropout=config.dropout)
        self.towers = Towers(len(inputs.tasks), self.bottom.out_features, config.tower, config.dropout)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """The one h [B, H]."""
        return self.bottom(x[SHARED]).squeeze(0)
