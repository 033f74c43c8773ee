"""MMoE: multi-gate mixture of experts (Ma et al., KDD 2018, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.layers import Gates, MLPs, Towers, mix


@dataclass
class MMoEConfig:
    """Sizes of MMoE."""

    name: str = "mmoe"
    """Model name."""
    experts: int = 4
    """Number of experts K."""
    expert: tuple[int, ...] = (128,)
    """Hidden widths of each expert; the last one is its output."""
    gate: tuple[int, ...] = ()
    """Hidden widths of each gate; none: the paper's linear gate."""
    tower: tuple[int, ...] = (64,)
    """Hidden widths of each task's tower."""
    dropout: float = 0.0
    """Probability of dropping a hidden unit in experts and towers."""


class MMoE(Model):
    """z_t = Σ_e softmax_e(W_t x) f_e(x); logit_t = tower_t(z_t)."""

    Config = MMoEConfig

    def __init__(self, config: MMoEConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        tasks = len(inputs.tasks)
        self.experts = MLPs(config.experts, inputs.width, config.expert, dropout=config.dropout)
        self.gates = Gates(tasks, inputs.width, config.experts, config.gate)
        self.towers = Towers(tasks, self.experts.out_features, config.tower, config.dropout)

    def represent(self, x: dict[str, Tensor]) -> Tensor:
        """All z_t [T, B, H]."""
        x_shared = x[SHARED]
        return mix(self.gates(x_shared), self.experts(x_shared))
