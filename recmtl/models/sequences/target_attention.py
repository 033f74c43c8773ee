"""Attention of a row's target to its history: DIN (Zhou et al., KDD 2018, section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from recmtl.config import SequenceConfig
from recmtl.models.layers import MLPs
from recmtl.models.sequences.base import History, SequenceEncoder, is_event


class TargetAttention(SequenceEncoder):
    r"""u = Σ_i a_i h_i with a_i = MLP([h_i, q, g_i − q, g_i ⊙ q]); 0 where there are no events.

    h_i is an item, q the target, g_i the part of h_i that is of the same tables as q. Weights are not normalised, as in
    the paper: two events that matter add up to more than one.

    Interpretations: the paper compares items with one target, and g_i = h_i there; its network's outer product is the
    elementwise one of its authors' code; its activation is ReLU here, as of all networks of the package.

    Shape:
        as `SequenceEncoder`; output: [B, I].
    """

    def __init__(self, history: History, config: SequenceConfig) -> None:
        super().__init__(history, config)
        self.mlps = MLPs(1, history.width + 3 * history.target_width, config.hidden, 1, config.dropout)

    def forward(self, items: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Encode; see the class for shapes."""
        q = target.unsqueeze(1).expand(-1, items.shape[1], -1)
        g = items[:, :, : self.history.target_width]
        inputs = torch.cat([items, q, g - q, g * q], dim=2)
        weights = self.mlps(inputs.flatten(0, 1)).view(items.shape[:2])
        weights = weights * is_event(items, lengths)
        return torch.bmm(weights.unsqueeze(1), items.to(weights.dtype)).squeeze(1)
