"""Groups of experts and the gates that mix them: one level of CGC, PLE, AdaTT, STEM or HoME."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate, groupby
from typing import Any, cast

import torch
from torch import Tensor, nn

from recmtl.errors import UserError
from recmtl.models.layers import Gates, MLPs, mix, side_by_side


class WiredGates(nn.ModuleList):
    """Gates that each see the experts of some groups: a `Gates` for each run of gates with as many experts to see.

    Args:
        experts: number of experts of every group; Σ of them is E.
        sees: for every gate, the groups whose experts it sees; their order does not matter.
        in_features: input width.
        hidden: hidden widths of each gate; none: linear gates.
        gates: class of the gates.

    Shape:
        input: [B, in] (all gates read the same) or [gates, B, in];
        output: what every gate gives every expert [gates, B, E], 0 where it sees none.
    """

    def __init__(
        self,
        experts: Sequence[int],
        sees: Sequence[Sequence[int]],
        in_features: int,
        hidden: Sequence[int] = (),
        gates: type[Gates] = Gates,
    ) -> None:
        super().__init__()
        self.experts = sum(experts)
        members = group_members(experts)
        seen = [[expert for group in sorted(groups) for expert in members[group]] for groups in sees]
        # Neighbouring gates with as many experts to choose from are one batched product.
        for choices, run in groupby(seen, key=len):
            index = torch.tensor(list(run))
            self.register_buffer(f"seen_{len(self)}", index.unsqueeze(1), persistent=False)
            self.append(gates(len(index), in_features, choices, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Apply every gate; see the class for shapes."""
        shares = []
        start = 0
        for gates in self:
            stop = start + cast(Gates, gates).logits.count
            shares.append(gates(x if x.dim() == 2 else x[start:stop]))
            start = stop
        return self.spread(shares)

    def spread(self, shares: Sequence[Tensor]) -> Tensor:
        """What every gate gives every expert [gates, B, E], from what those of each run give the ones they see."""
        whole = []
        for i, share in enumerate(shares):
            index: Tensor = getattr(self, f"seen_{i}")
            zeros = share.new_zeros(*share.shape[:2], self.experts)
            whole.append(zeros.scatter(2, index.expand_as(share), share))
        return whole[0] if len(whole) == 1 else torch.cat(whole)


def group_members(experts: Sequence[int]) -> list[range]:
    """The experts of every group, by the number of them in each."""
    return [range(end - size, end) for size, end in zip(experts, accumulate(experts), strict=True)]


class GatedExperts(nn.Module):
    r"""Groups of experts, and gates that each mix the experts of the groups they see.

    z_i = Σ_{k seen by i} softmax_k(W_i Σ_{g read by i} x_g) f_k(x_{group of k}), with experts f_k that are MLPs of one
    shape. Who reads and sees what is the wiring that tells models apart. A gate has weights for the experts it sees and
    no others.

    Everything that reads one x_g, first layers of experts and of gates alike, is one product: a gate of its own costs
    as much as an expert, as both are bound by reading x.

    Args:
        experts: number of experts of every group; Σ of them is E.
        sees: for every gate, the groups whose experts it mixes; their order does not matter.
        reads: for every gate, the groups whose inputs it reads the sum of.
        in_features: input width of experts and gates.
        hidden: hidden widths of each expert; the last one is its output H.
        gate_hidden: hidden widths of each gate; none: a linear gate.
        dropout: probability of dropping a hidden unit of an expert.
        trains: for every gate, the groups it trains. The others it sees forward only: behind a stop-gradient, so that
            neither their experts nor what they read learn from it; its own weights do. None: all it sees.

    Shape:
        x: [B, in] (all groups read the same), [groups, B, in] or a tensor [B, in] for every group;
        output: [gates, B, H].

    Raises:
        UserError: experts have no layer.
    """

    trained: Tensor | None

    def __init__(
        self,
        experts: Sequence[int],
        sees: Sequence[Sequence[int]],
        reads: Sequence[Sequence[int]],
        in_features: int,
        hidden: Sequence[int],
        gate_hidden: Sequence[int] = (),
        dropout: float = 0.0,
        trains: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if not hidden:
            raise UserError("model.expert_widths: at least one width")
        self.experts = MLPs(sum(experts), in_features, hidden, dropout=dropout)
        self.out_features = self.experts.out_features
        self.members = group_members(experts)
        self.readers = [[i for i, groups in enumerate(reads) if group in groups] for group in range(len(experts))]
        self.gates = WiredGates(experts, sees, in_features, gate_hidden)
        trained = None
        if trains is not None and [set(groups) for groups in trains] != [set(groups) for groups in sees]:
            trained = torch.zeros(len(trains), 1, sum(experts))
            for row, groups in zip(trained, trains, strict=True):
                row[0, [expert for group in groups for expert in self.members[group]]] = 1
        self.register_buffer("trained", trained, persistent=False)

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Mix the experts for every gate; see the class for shapes."""
        weights, experts = self.choose(x)
        return mix(weights, experts) if self.trained is None else TrainedMix.apply(weights, experts, self.trained)

    def choose(self, x: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What every gate gives every expert [gates, B, E], 0 where it sees none, and the experts [E, B, H]."""
        experts, gates = self._first_layers(x)
        shares = []
        for logits in self._gate_logits():
            mine, gates = gates[: logits.count], gates[logits.count :]
            shares.append(torch.softmax(logits.finish(torch.cat(mine) + logits.biases[0]), dim=-1))
        return self.gates.spread(shares), self.experts.finish(experts)

    def _gate_logits(self) -> list[MLPs]:
        return [cast(Gates, gates).logits for gates in self.gates]

    def _first_layers(self, x: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """First layers of all experts [E, B, ·], and of each gate [1, B, ·] without its bias."""
        weights, biases = self.experts.weights[0], self.experts.biases[0]
        gate_weights = [weight for logits in self._gate_logits() for weight in logits.weights[0].split(1)]
        gates: list[list[Tensor]] = [[] for _ in gate_weights]
        if isinstance(x, Tensor) and x.dim() == 2:
            parts = [(x, range(self.experts.count), list(range(len(gate_weights))))]
        else:
            parts = list(zip(x, self.members, self.readers, strict=True))
        experts = []
        for one, members, readers in parts:
            mine = slice(members.start, members.stop)
            # A gate reads the sum of several groups' inputs: its bias comes once, after the sum.
            columns = [weights[mine], *(gate_weights[i] for i in readers)]
            offsets = [biases[mine], *(torch.zeros_like(gate_weights[i][:, :1]) for i in readers)]
            expert, *products = side_by_side(one, columns, offsets)
            experts.append(expert)
            for i, product in zip(readers, products, strict=True):
                gates[i].append(product)
        return torch.cat(experts), [reduce(torch.add, products) for products in gates]


class TrainedMix(torch.autograd.Function):
    """`mix` with a stop-gradient for each pair of gate and expert: experts learn from the gates that train them.

    Equal to mix(g · trained, e) + mix(g · (1 − trained), sg(e)) with half the products.

    Args:
        gates: g [n, B, K].
        experts: e [K, B, H].
        trained: 1 where gate i trains expert k, else 0, [n, 1, K].
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, experts: Tensor, trained: Tensor) -> Tensor:
        """Gated sums [n, B, H]."""
        ctx.save_for_backward(gates, experts, trained)
        return mix(gates, experts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of gates and experts."""
        gates, experts, trained = ctx.saved_tensors
        rows = gradient.transpose(0, 1)  # [B, n, H]
        # Under autocast the gates are float32 beside experts of bfloat16.
        shares = (gates * trained).to(gradient.dtype)
        of_gates = torch.matmul(rows, experts.to(gradient.dtype).permute(1, 2, 0)).transpose(0, 1)
        return of_gates, mix(shares.transpose(0, 2), gradient), None
