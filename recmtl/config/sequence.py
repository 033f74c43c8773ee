"""How histories become a part of what a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recmtl.typed import Fraction, Size


@dataclass
class SequenceConfig:
    """Encoders of histories: features of kind sequence."""

    encoder: Literal["mean", "target_attention", "transformer", "hstu"] = "target_attention"
    """mean: of the events; target_attention: their sum, each weighed by a network that also reads what the row is about
    (DIN), of a history without a target their mean; transformer: layers of attention over events and target (BST);
    hstu: the same with HSTU's layer."""
    match: bool = True
    """Also tell for every event whether its value is the row's own, by id, of each sequence with a target."""
    hidden: tuple[Size, ...] = (64, 32)
    """Hidden widths of the network of target_attention."""
    dim: Size = 64
    """Width of transformer and hstu; a multiple of heads."""
    heads: Size = 2
    """Attention heads of transformer and hstu."""
    layers: Size = 1
    """Layers of transformer and hstu. In the last one the target alone looks at the events; each one before it takes
    hstu memory by the square of their number."""
    dropout: Fraction = 0.0
    """Probability of dropping a unit of transformer and hstu, and a hidden one of target_attention."""
