"""A causal transformer over a history and its target: BST (Chen et al., 2019, arXiv 1905.06874)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.config import SequenceConfig
from recmtl.models.sequences.base import History, SequenceEncoder, as_item, is_event
from recmtl.models.sequences.positions import CLASSES, distance_classes, distances_to_target
from recmtl.runtime.private_api import flash_attention


class Block(nn.Module):
    r"""One layer: s = LN(x + MH(x)), y = LN(s + W_2 leaky_relu(W_1 s + b_1) + b_2), MH multi-head attention.

    Args:
        config: width d, heads and dropout.

    Shape:
        items: [B, L, d]; target: [B, 1, d]; output: the same two, the first None in the last layer.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.query, self.key_value, self.output = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.attention_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, items: Tensor, target: Tensor, events: Tensor, *, last: bool = False
    ) -> tuple[Tensor | None, Tensor]:
        """Events look at themselves and those before them, the target at all events and itself.

        Args:
            items: of the history.
            target: of the row.
            events: which items are events and no padding, bool [B, L].
            last: nothing looks at the items afterwards.
        """
        length = items.shape[1]
        key, value = (split(part, self.heads) for part in self.key_value(torch.cat([items, target], 1)).chunk(2, 2))
        seen = F.pad(events, (0, 1), value=True)[:, None, None]
        attended = attend(split(self.query(target), self.heads), key, value, seen)
        target = self._transform(target, attended)
        if last:
            return None, target
        # Padding follows the events, so that none of them looks at it.
        query = split(self.query(items), self.heads)
        attended = attend(query, key[:, :, :length], value[:, :, :length], is_causal=True)
        return self._transform(items, attended), target

    def _transform(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention [B, heads, L, d / heads]."""
        x = self.attention_norm(x + self.dropout(self.output(join(attended))))
        return self.norm(x + self.dropout(self.narrow(F.leaky_relu(self.widen(x)))))


class Transformer(SequenceEncoder):
    r"""The target's place in the last layer: x_0 = W h + p_{c(distance)} of every event and of the target, then layers.

    The target [q; 0; 1] is the event that may come next, at distance 0. No event sees those after it. Where there are
    none, the target sees itself alone.

    Interpretations: the paper takes all places' outputs, for which a history must have a fixed length; its position is
    the time between event and target, here the number of events, in classes (`positions`). Times can be a sequence of
    their own.

    Shape:
        as `SequenceEncoder`; output: [B, d].
    """

    def __init__(self, history: History, config: SequenceConfig) -> None:
        super().__init__(history, config)
        self.project = nn.Linear(history.width, config.dim)
        self.positions = nn.Parameter(torch.empty(CLASSES, config.dim))
        nn.init.uniform_(self.positions, -(history.width**-0.5), history.width**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    @classmethod
    def output_width(cls, history: History, config: SequenceConfig) -> int:
        """That of the layers."""
        return config.dim

    def forward(self, items: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Encode; see the class for shapes."""
        events = is_event(items, lengths)
        length = items.shape[1]
        distances = distance_classes(distances_to_target(length, lengths), length)
        x = self.project(items) + F.embedding(distances, self.positions)
        y = (self.project(as_item(self.history, target)) + self.positions[0]).unsqueeze(1)
        for place, block in enumerate(self.blocks, 1):
            x, y = block(x, y, events, last=place == len(self.blocks))
        return y.squeeze(1)


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None, *, is_causal: bool = False) -> Tensor:
    """softmax(QKᵀ / √D) V [B, heads, P, D], without a tensor of all weights [P, K].

    Args:
        query: [B, heads, P, D].
        key: [B, heads, K, D].
        value: as `key`.
        seen: which places are looked at, bool, broadcast to [B, heads, P, K]; None: all.
        is_causal: no place looks at those after it.
    """
    if query.is_meta:
        # Memory is planned so. PyTorch has no kernel for this device, and its formulas would make all weights.
        mask = None if seen is None else seen.to(query.dtype)
        attended: Tensor = flash_attention(query, key, value, 0.0, is_causal, attn_mask=mask)[0]
        return attended
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=is_causal)


def split(x: Tensor, heads: int) -> Tensor:
    """[B, L, d] → [B, heads, L, d / heads]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def join(x: Tensor) -> Tensor:
    """[B, heads, L, d / heads] → [B, L, d]."""
    return x.transpose(1, 2).flatten(2)
