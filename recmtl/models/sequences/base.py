"""What every encoder of histories is: a network from the events before a row, and what it is about, to a vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recmtl.config import SequenceConfig
from recmtl.schema import Feature


@dataclass(frozen=True)
class History:
    """Aligned sequences: each event is an item [I] of their embeddings side by side, then M bits.

    The sequences with a target come first, so that an item begins with what is compared with the target [Q].
    """

    name: str
    sequences: tuple[Feature, ...]
    """Those with a target first."""
    target_width: int
    """Q: embeddings of the targets side by side, as wide as those of the sequences that have one."""
    embedding_width: int
    """Embeddings of all sequences side by side."""
    matches: int
    """M: for each sequence with a target whether the value of the event is that of the row, 1 or 0."""

    @property
    def width(self) -> int:
        """I."""
        return self.embedding_width + self.matches

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets, in the order of their sequences."""
        return tuple(feature.target for feature in self.sequences if feature.target)


class SequenceEncoder(nn.Module):
    r"""Base of the encoders.

    Args:
        history: what an item is.
        config: the `sequence` section of the configuration.

    Shape:
        items: [B, L, I], of which the first `lengths` of a row are events, the oldest first, and what follows is
        padding without a meaning, L ≥ 1; target: [B, Q]; lengths: int [B]; output: [B, `output_width`].
    """

    def __init__(self, history: History, config: SequenceConfig) -> None:
        super().__init__()
        self.history, self.config = history, config

    @classmethod
    def output_width(cls, history: History, config: SequenceConfig) -> int:
        """Width of the output: of an item, by default."""
        return history.width

    def forward(self, items: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Encode; see the class for shapes."""
        raise NotImplementedError


def is_event(items: Tensor, lengths: Tensor) -> Tensor:
    """Whether an item is an event and no padding: bool [B, L]."""
    return torch.arange(items.shape[1], device=items.device) < lengths.unsqueeze(1)


def as_item(history: History, target: Tensor) -> Tensor:
    """A row itself as the event that may come next, [B, I]: its targets, 0 for sequences without one, and every bit 1.

    Args:
        history: says what an item is.
        target: [B, Q].
    """
    nothing = target.new_zeros(target.shape[0], history.embedding_width - history.target_width)
    return torch.cat([target, nothing, target.new_ones(target.shape[0], history.matches)], dim=1)
