"""Groups of experts and the gates that mix them: one level of CGC, PLE, AdaTT or STEM."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from recmtl.models.layers import Gates, MLPs, mix


class GatedExperts(nn.Module):
    r"""Groups of experts, and gates that each mix the experts of the groups they see.

    z_i = Σ_{k seen by i} softmax_k(W_i g_i) f_k(x_{group of k}), with experts f_k that are MLPs of one shape. Which
    gate sees what is the wiring that tells models apart. A gate has weights for the experts it sees and no others.

    Args:
        experts: number of experts of every group; Σ of them is E.
        sees: for every gate, the groups it mixes; their order does not matter.
        in_features: input width of experts and gates.
        hidden: hidden widths of each expert; the last one is its output H.
        gate_hidden: hidden widths of each gate; none: a linear gate.
        dropout: probability of dropping a hidden unit of an expert.
        trains: for every gate, the groups it trains. The others it sees forward only: behind a stop-gradient, so that
            neither their experts nor what they read learn from it; its own weights do. None: all it sees.

    Shape:
        x, what experts read: [B, in] (all groups read the same), [groups, B, in] or a tensor [B, in] for every group;
        gate_x, what gates read: [B, in] (all gates read the same) or [gates, B, in];
        output: [gates, B, H].
    """

    trained: Tensor | None

    def __init__(
        self,
        experts: Sequence[int],
        sees: Sequence[Sequence[int]],
        in_features: int,
        hidden: Sequence[int],
        gate_hidden: Sequence[int] = (),
        dropout: float = 0.0,
        trains: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.sizes = tuple(experts)
        self.experts = MLPs(sum(experts), in_features, hidden, dropout=dropout)
        self.out_features = self.experts.out_features
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        members = [range(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]
        seen = [[expert for group in sorted(groups) for expert in members[group]] for groups in sees]
        # Neighbouring gates with as many experts to choose from are one batched product.
        self.gates = nn.ModuleList()
        for choices, run in groupby(seen, key=len):
            index = torch.tensor(list(run))
            self.register_buffer(f"seen_{len(self.gates)}", index.unsqueeze(1), persistent=False)
            self.gates.append(Gates(len(index), in_features, choices, gate_hidden))
        trained = None
        if trains is not None and [set(groups) for groups in trains] != [set(groups) for groups in sees]:
            trained = torch.zeros(len(trains), 1, sum(self.sizes))
            for row, groups in zip(trained, trains, strict=True):
                row[0, [expert for group in groups for expert in members[group]]] = 1
        self.register_buffer("trained", trained, persistent=False)

    def weights(self, gate_x: Tensor) -> Tensor:
        """What every gate gives every expert [gates, B, E]: they sum to 1 over E, and are 0 where it sees none."""
        shares: list[Tensor] = []
        start = 0
        for i, gates in enumerate(self.gates):
            index: Tensor = getattr(self, f"seen_{i}")
            read = gate_x if gate_x.dim() == 2 else gate_x[start : start + len(index)]
            share = gates(read)
            zeros = share.new_zeros(*share.shape[:2], self.experts.count)
            shares.append(zeros.scatter(2, index.expand_as(share), share))
            start += len(index)
        return shares[0] if len(shares) == 1 else torch.cat(shares)

    def forward(self, x: Tensor | Sequence[Tensor], gate_x: Tensor) -> Tensor:
        """Mix the experts for every gate; see the class for shapes."""
        experts = self.experts(x) if isinstance(x, Tensor) and x.dim() == 2 else self.experts(tuple(x), self.sizes)
        weights = self.weights(gate_x)
        if self.trained is None:
            return mix(weights, experts)
        return mix(weights * self.trained, experts) + mix(weights * (1 - self.trained), experts.detach())
