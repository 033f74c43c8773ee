"""AITM: each task also attends to what the task before it learned (Xi et al., KDD 2021, section 3)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from recmtl.config.models import AITMConfig
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.layers import MLPs, Towers
from recmtl.models.relations import parent_indices, parents_first


class Attention(nn.Module):
    r"""Adaptive information transfer (section 3.3): attention over a pair of vectors.

    score_u = ⟨W1 u, W2 u⟩ / √K, softmax over the pair, z = Σ_u softmax_u(score) · W3 u. W1, W2, W3 [K, K] without
    bias, uniform in ±1/√K at the start, as `nn.Linear` draws them.

    Args:
        width: K.

    Shape:
        pair: [2, B, K] (q_t, then p_{t-1}); output: z [B, K].
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 3 * width, bias=False)  # W1, W2 and W3 in one product

    def forward(self, pair: Tensor) -> Tensor:
        """Mix the pair; see the class for shapes."""
        weights, values = self.attend(pair)
        return (weights.unsqueeze(-1) * values).sum(0)

    def attend(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """The softmax [2, B], which sums to 1 over the pair, and W3 u [2, B, K]."""
        first, second, values = self.project(pair).chunk(3, dim=-1)
        scores = (first * second).sum(-1) / math.sqrt(pair.shape[-1])
        return torch.softmax(scores, dim=0), values


class AITM(Model):
    r"""q_t = bottom_t(x); z_t attends to q_t and to what the task before it hands on; logit_t = tower_t(z_t).

    z_t = q_t for the first task; else p = transfer_t(z_before) and z_t = Attention(q_t, p), all [B, K]. The attention
    is one for all tasks.

    Order: the task before t is its parent. Tasks without a parent among the trained ones follow the task before them
    in the recipe's order (moved so that parents come first), so that a recipe without parents is one chain.

    The calibrator (section 3.4) is a part of the loss: `recmtl.objectives.losses.calibrator`.
    """

    def __init__(self, config: AITMConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        tasks = len(inputs.tasks)
        parents = parent_indices(inputs.tasks)
        order = parents_first(parents)
        self.steps: list[tuple[int, int]] = []
        """(task, the task before it) for all but the first, in the order they are computed."""
        for previous, task in pairwise(order):
            parent = parents[task]
            self.steps.append((task, previous if parent is None else parent))
        self.first = order[0]
        self.calibrated: Tensor
        """The tasks that need their parent, which the calibrator counts, and their parents [2, C]."""
        pairs = [
            (task, parent)
            for task, parent in enumerate(parents)
            if parent is not None and inputs.tasks[task].relation == "given" and not inputs.tasks[task].conditional
        ]
        self.register_buffer("calibrated", torch.tensor(pairs, dtype=torch.long).view(-1, 2).T, persistent=False)
        self.bottoms = MLPs(tasks, inputs.width, config.bottom, dropout=config.dropout)
        width = self.bottoms.out_features
        # One task has nothing to attend to.
        self.transfers = nn.ModuleList(
            MLPs(1, width, (*config.transfer, width), dropout=config.dropout) for _ in self.steps
        )
        self.attention = Attention(width) if self.steps else None
        self.towers = Towers(tasks, width, config.tower, config.dropout)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """All z_t [T, B, K]."""
        q = self.bottoms(x[SHARED])
        z = {self.first: q[self.first]}
        for (task, before), transfer in zip(self.steps, self.transfers, strict=True):
            assert self.attention is not None
            z[task] = self.attention(torch.stack([q[task], transfer(z[before]).squeeze(0)]))
        return torch.stack([z[task] for task in range(len(q))])
