"""HoME: normalised experts of groups, then of tasks, with gates on features (Wang et al., KDD 2025, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.config.models import HoMEConfig
from recmtl.errors import UserError, nearest
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.batch_norm import BatchNorm
from recmtl.models.gated_experts import WiredGates
from recmtl.models.layers import Gates, Towers, mix


def uniform(count: int, rows: int, columns: int) -> nn.Parameter:
    """Weights [count, rows, columns], uniform in ±1/√rows, as `nn.Linear`'s are."""
    bound = 1 / math.sqrt(rows)
    return nn.Parameter(torch.empty(count, rows, columns).uniform_(-bound, bound))


class Experts(nn.Module):
    r"""n experts, each an MLP behind a gate of its own on the features.

    Expert k: h_0 = x ⊙ 2σ(x B_k A_k), h_{l+1} = dropout(swish(BatchNorm(h_l W_{k,l}))). Normalisation keeps the
    outputs of all experts alike in size, which a gate can then weigh fairly; swish(u) = u σ(u) has no dead half as ReLU
    has. W needs no bias, as BatchNorm has β. W, B and A start uniform in ±1/√fan_in.

    Args:
        count: number of experts n.
        in_features: input width.
        hidden: widths of the layers; the last one is the output H.
        rank: columns of B, rows of A.
        dropout: probability of dropping a hidden unit.

    Shape:
        input: [B, in] (all experts read the same) or [n, B, in]; output: [n, B, H].
    """

    def __init__(self, count: int, in_features: int, hidden: Sequence[int], rank: int, dropout: float = 0.0) -> None:
        super().__init__()
        widths = (in_features, *hidden)
        self.out_features = widths[-1]
        self.b, self.a = uniform(count, in_features, rank), uniform(count, rank, in_features)
        self.weights = nn.ParameterList(uniform(count, m, n) for m, n in pairwise(widths))
        self.norms = nn.ModuleList(BatchNorm(count, n) for n in hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply every expert; see the class for shapes."""
        h = 2 * x * torch.sigmoid(torch.matmul(torch.matmul(x, self.b), self.a))
        for weight, norm in zip(self.weights, self.norms, strict=True):
            h = self.dropout(F.silu(norm(torch.bmm(h, weight))))
        return h


class SelfGates(Gates):
    """As `Gates`, but a gate on one expert alone is a sigmoid; the softmax would always be 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply every gate; input [B, in] or [n, B, in], output [n, B, K]."""
        logits = self.logits(x)
        return torch.sigmoid(logits) if logits.shape[-1] == 1 else torch.softmax(logits, dim=-1)


class Level(nn.Module):
    """Groups of experts, gates that mix those they see, and self-gates that add a gate's own group once more.

    z_i = softmax(W_i g_i)·[experts of the groups that i sees] + s_i(g_i)·[experts of group i]: a path to a gate's own
    experts on which the other groups do not compete. s is `SelfGates`.

    Args:
        sizes: number of experts of every group; Σ of them is E.
        sees: for every gate, the groups it mixes. Gate i's own group is group i.
        in_features: input width of experts and gates.
        config: widths, rank, dropout.

    Shape:
        x, what experts read: [B, in] (all read the same) or [E, B, in];
        gate_x, what gates read: [B, in] (all read the same) or [gates, B, in];
        output: [gates, B, H].
    """

    def __init__(
        self, sizes: Sequence[int], sees: Sequence[Sequence[int]], in_features: int, config: HoMEConfig
    ) -> None:
        super().__init__()
        own = [[gate] for gate in range(len(sees))]
        self.experts = Experts(sum(sizes), in_features, config.expert_widths, config.rank, config.dropout)
        self.gates = WiredGates(sizes, sees, in_features, config.gate)
        self.self_gates = WiredGates(sizes, own, in_features, config.gate, SelfGates)

    def forward(self, x: Tensor, gate_x: Tensor) -> Tensor:
        """Mix the experts for every gate; see the class for shapes."""
        return mix(self.gates(gate_x) + self.self_gates(gate_x), self.experts(x))


class HoME(Model):
    r"""Two levels of gated experts (`Experts`, `Level`): groups of tasks first, then tasks.

    Level 1, on x [B, width], G groups of tasks and what all share:
        z_g = softmax(W_g x)·[own experts of g; shared experts] + self-gate on its own;
        z_S = softmax(W_S x)·[experts of all groups; shared experts] + self-gate on the shared ones.
    Level 2, for task t of group g:
        z_t = softmax(W_t z_g)·[own experts of t (z_g); experts of g (z_g); shared experts(z_S)] + self-gate on its own.
    logit_t = tower_t(z_t).

    Interpretations, where the equations leave it open: level 2's gates read z_g, as the experts of t and g do, and its
    shared experts read z_S; every self-gate, also that of z_S, covers exactly the gate's own experts; each expert, on
    both levels, has one feature gate, of a fixed `rank`; every layer of an expert is normalised; widths, momentum and
    initial weights are this package's.

    Raises:
        UserError: `groups` names a task that is not trained.
    """

    def __init__(self, config: HoMEConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        names = [task.name for task in inputs.tasks]
        for name in config.groups:
            if name not in names:
                raise UserError(f"model.groups: no task '{name}'; {nearest(name, names)}")
        of_task = [config.groups.get(name, name) for name in names]
        groups = list(dict.fromkeys(of_task))
        self.group_of = [groups.index(group) for group in of_task]
        """Group of every task."""
        shared, tasks = len(groups), len(names)
        sizes = [config.group_experts] * shared + [config.shared_experts]
        sees = [*([group, shared] for group in range(shared)), list(range(shared + 1))]
        self.group_level = Level(sizes, sees, inputs.width, config)
        width = self.group_level.experts.out_features
        task_sizes = [config.task_experts] * tasks + sizes
        task_sees = [[task, tasks + group, tasks + shared] for task, group in enumerate(self.group_of)]
        self.task_level = Level(task_sizes, task_sees, width, config)
        sources = [*self.group_of, *range(shared + 1)]
        self.reads = [source for source, size in zip(sources, task_sizes, strict=True) for _ in range(size)]
        """Which of level 1's outputs each expert of level 2 reads."""
        self.towers = Towers(tasks, self.task_level.experts.out_features, config.tower, config.dropout)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """All z_t [T, B, H]."""
        z = self.group_level(x[SHARED], x[SHARED])
        return self.task_level(
            torch.stack([z[source] for source in self.reads]), torch.stack([z[group] for group in self.group_of])
        )
