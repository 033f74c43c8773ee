"""HSTU's layer over a history and its target (Zhai et al., ICML 2024, arXiv 2402.17152, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.config import SequenceConfig
from recmtl.models.sequences.base import History, SequenceEncoder, as_item, is_event
from recmtl.models.sequences.positions import CLASSES, distance_classes, distances_to_target
from recmtl.models.sequences.transformer import join, split


class HSTUBlock(nn.Module):
    r"""One layer: U, Q = silu(f_1(LN(x))), V, K = silu(f_2(LN(x))), A = silu(QKᵀ + r) / n, y = x + f_3(LN(AV) ⊙ U).

    r is a bias for each head and class of distance (`positions`), n how many places a place looks at: the sum over
    events is not normalised by their weights, so that it tells how many there are of a kind.

    Interpretations: r is of positions alone, as times can be a sequence of their own; n is the number of places looked
    at, the paper's is the longest history; norm and residual lie where its authors' code has them.

    Args:
        config: width d, heads and dropout.

    Shape:
        items: [B, L, d]; target: [B, 1, d]; output: the same two, the first None in the last layer.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.gate_query, self.value_key = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(CLASSES, config.heads))
        self.norm, self.attention_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, items: Tensor, target: Tensor, lengths: Tensor, *, last: bool = False
    ) -> tuple[Tensor | None, Tensor]:
        """Events look at themselves and those before them, the target at all events and itself.

        Args:
            items: of the history.
            target: of the row.
            lengths: int [B].
            last: nothing looks at the items afterwards.
        """
        length = items.shape[1]
        normed, normed_target = self.norm(items), self.norm(target)
        both = torch.cat([normed, normed_target], dim=1)
        value, key = (split(part, self.heads) for part in F.silu(self.value_key(both)).chunk(2, 2))
        distances = F.pad(distances_to_target(length, lengths), (0, 1))  # the target is at distance 0
        seen = F.pad(is_event(items, lengths), (0, 1), value=True)
        shares = seen.to(items.dtype) / (lengths + 1).unsqueeze(1)
        y = self._attend(target, normed_target, key, value, distances[:, None], shares[:, None])
        if last:
            return None, y
        # Padding follows the events, so that none of them looks at it.
        place = torch.arange(length, device=items.device)
        distances = place.unsqueeze(1) - place
        shares = (distances >= 0).to(items.dtype) / (place + 1).unsqueeze(1)
        x = self._attend(items, normed, key[:, :, :length], value[:, :, :length], distances[None], shares[None])
        return x, y

    def _attend(
        self, x: Tensor, normed: Tensor, key: Tensor, value: Tensor, distances: Tensor, shares: Tensor
    ) -> Tensor:
        """The output for places x [B, P, d] that look at K others, by distance and share [1 or B, P, K]."""
        gate, query = F.silu(self.gate_query(normed)).chunk(2, 2)
        bias = F.embedding(distance_classes(distances, distances.shape[2]), self.bias).permute(0, 3, 1, 2)
        scores = split(query, self.heads) @ key.transpose(2, 3) + bias
        weights = F.silu(scores) * shares.unsqueeze(1)
        attended = self.attention_norm(join(weights @ value))
        return x + self.dropout(self.output(attended * gate))


class HSTU(SequenceEncoder):
    r"""The target's place in the last layer: x_0 = W h of every event and of the target, then layers of HSTU.

    The target [q; 0; 1] is the event that may come next. No event sees those after it. Where there are none, the target
    sees itself alone.

    Shape:
        as `SequenceEncoder`; output: [B, d].
    """

    def __init__(self, history: History, config: SequenceConfig) -> None:
        super().__init__(history, config)
        self.project = nn.Linear(history.width, config.dim)
        self.blocks = nn.ModuleList(HSTUBlock(config) for _ in range(config.layers))

    @classmethod
    def output_width(cls, history: History, config: SequenceConfig) -> int:
        """That of the layers."""
        return config.dim

    def forward(self, items: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Encode; see the class for shapes."""
        x, y = self.project(items), self.project(as_item(self.history, target)).unsqueeze(1)
        for place, block in enumerate(self.blocks, 1):
            x, y = block(x, y, lengths, last=place == len(self.blocks))
        return y.squeeze(1)
