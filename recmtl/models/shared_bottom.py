"""Shared bottom: one MLP for all tasks, one tower each (Caruana, Multitask Learning, 1997)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.layers import MLPs, Towers


@dataclass
class SharedBottomConfig:
    """Sizes of the shared-bottom model."""

    name: str = "shared_bottom"
    """Model name."""
    bottom: tuple[int, ...] = (256, 128)
    """Hidden widths of the shared MLP."""
    tower: tuple[int, ...] = (64,)
    """Hidden widths of each task's tower."""
    dropout: float = 0.0
    """Probability of dropping a hidden unit."""


class SharedBottom(Model):
    """h = MLP(x); logit_t = tower_t(h)."""

    Config = SharedBottomConfig

    def __init__(self, config: SharedBottomConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.bottom = MLPs(1, inputs.width, config.bottom, dropout=config.dropout)
        self.towers = Towers(len(inputs.tasks), self.bottom.out_features, config.tower, config.dropout)

    def represent(self, x: dict[str, Tensor]) -> Tensor:
        """The one h [B, H]."""
        return self.bottom(x[SHARED]).squeeze(0)
