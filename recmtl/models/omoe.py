"""OMoE: one gate, and so one mixture of experts, for all tasks (Ma et al., KDD 2018, section 4)."""

from __future__ import annotations

from torch import Tensor

from recmtl.config.models import OMoEConfig
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.gated_experts import GatedExperts
from recmtl.models.layers import Towers


class OMoE(Model):
    """z = Σ_e softmax_e(W x) f_e(x); logit_t = tower_t(z).

    z [B, H] is computed once: all tasks read the same, whatever dropout drops in the experts.
    """

    def __init__(self, config: OMoEConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        sizes = (config.expert_widths, config.gate, config.dropout)
        self.level = GatedExperts([config.experts], [[0]], [[0]], inputs.width, *sizes)
        self.towers = Towers(len(inputs.tasks), self.level.out_features, config.tower, config.dropout)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """The one z [B, H]."""
        return self.level(x[SHARED]).squeeze(0)
