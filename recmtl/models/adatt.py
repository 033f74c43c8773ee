"""AdaTT: every task takes from every task's experts and keeps its own (Li et al., KDD 2023, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recmtl.config.models import AdaTTConfig
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.gated_experts import GatedExperts
from recmtl.models.layers import Towers


class Fusion(GatedExperts):
    r"""One level of AdaTT-sp: f_t = softmax(W_t h_t)·[experts of all tasks] + Σ_e v_{t,e} · own expert e of t.

    The second term, the residual, keeps a task at its own experts while gates learn what to take from the others. v
    starts uniform in ±1/√(own experts). With one expert a task it is not learned but 1, as the authors' is.

    Args:
        tasks: number of tasks T.
        task_experts: number of experts of each task's own.
        in_features: width of h.
        hidden: hidden widths of each expert; the last one is its output H.
        gate_hidden: hidden widths of each gate; none: a linear gate.
        dropout: probability of dropping a hidden unit of an expert.

    Shape:
        input: h [B, in] (all tasks read the same) or [T, B, in]; output: f [T, B, H].
    """

    v: Tensor

    def __init__(
        self,
        tasks: int,
        task_experts: int,
        in_features: int,
        hidden: Sequence[int],
        gate_hidden: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        everything = [list(range(tasks))] * tasks
        reads = [[task] for task in range(tasks)]
        super().__init__([task_experts] * tasks, everything, reads, in_features, hidden, gate_hidden, dropout)
        if task_experts == 1:
            self.register_buffer("v", torch.ones(tasks, 1), persistent=False)
        else:
            bound = 1 / math.sqrt(task_experts)
            self.v = nn.Parameter(torch.empty(tasks, task_experts).uniform_(-bound, bound))

    def choose(self, x: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What every task gives every expert [T, B, E], its gate's share and v for its own ones, and the experts."""
        weights, experts = super().choose(x)
        own = torch.block_diag(*self.v.split(1))  # [T, E]
        return weights + own.unsqueeze(1), experts


class AdaTT(Model):
    r"""AdaTT-sp: levels in which tasks fuse, adaptively, with each other's experts; no expert is shared by design.

    h_t = x [B, width] before the first level; each `Fusion` turns h_t into f_t [B, H], the next level's h_t.
    logit_t = tower_t(f_t) of the last level.
    """

    def __init__(self, config: AdaTTConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        tasks = len(inputs.tasks)
        self.levels = nn.ModuleList()
        width = inputs.width
        for _ in range(config.levels):
            level = Fusion(tasks, config.task_experts, width, config.expert_widths, config.gate, config.dropout)
            self.levels.append(level)
            width = level.out_features
        self.towers = Towers(tasks, width, config.tower, config.dropout)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """The last level's f [T, B, H]."""
        h = x[SHARED]
        for level in self.levels:
            h = level(h)
        return h
