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
        hidden = self._first_layer(items, target)
        weights = self.mlps.finish(hidden.flatten(0, 1).unsqueeze(0)).view(items.shape[:2])
        weights = weights * is_event(items, lengths)
        return torch.bmm(weights.unsqueeze(1), items.to(weights.dtype)).squeeze(1)

    def _first_layer(self, items: Tensor, target: Tensor) -> Tensor:
        """[h, q, g − q, g ⊙ q] W + b, [B, L, ·], without that wide input: what q alone gives is computed once a row."""
        width = self.history.target_width
        of_h, of_q, of_difference, of_product = self.mlps.weights[0][0].split([items.shape[2], width, width, width])
        of_items = torch.cat([of_h[:width] + of_difference, of_h[width:]])
        of_row = target @ (of_q - of_difference) + self.mlps.biases[0][0]
        products = items[:, :, :width] * target.unsqueeze(1)
        return items @ of_items + products @ of_product + of_row.unsqueeze(1)
