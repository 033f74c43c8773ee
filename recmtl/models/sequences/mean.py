"""Mean of a history."""

from __future__ import annotations

import torch
from torch import Tensor

from recmtl.models.sequences.base import SequenceEncoder, is_event


class Mean(SequenceEncoder):
    r"""u = Σ_i h_i / n over the n events of a row; 0 where there are none. Of a bit it is the share of matching events.

    Shape:
        as `SequenceEncoder`; output: [B, I].
    """

    def forward(self, items: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Encode; see the class for shapes."""
        events = is_event(items, lengths).to(items.dtype)
        return torch.bmm(events.unsqueeze(1), items).squeeze(1) / lengths.clamp(min=1).unsqueeze(1)
