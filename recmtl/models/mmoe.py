"""MMoE: multi-gate mixture of experts (Ma et al., KDD 2018, section 4.2)."""

from __future__ import annotations

from torch import Tensor

from recmtl.config.models import MMoEConfig
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.gated_experts import GatedExperts
from recmtl.models.layers import Towers


class MMoE(Model):
    """z_t = Σ_e softmax_e(W_t x) f_e(x); logit_t = tower_t(z_t)."""

    def __init__(self, config: MMoEConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        tasks = len(inputs.tasks)
        # One group of experts, which every task's gate sees and whose input it reads.
        gates = [[0]] * tasks
        sizes = (config.expert_widths, config.gate, config.dropout)
        self.level = GatedExperts([config.experts], gates, gates, inputs.width, *sizes)
        self.towers = Towers(tasks, self.level.out_features, config.tower, config.dropout)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """All z_t [T, B, H]."""
        return self.level(x[SHARED])
