"""The section `interaction`: what is done to x before any model reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recmtl.typed import Count, Size


@dataclass
class InteractionConfig:
    """Layers between what is looked up and the model: x of every table set is normalised, then crossed."""

    kind: Literal["none", "dcn", "fm", "dot"] = "none"
    """dcn: cross layers in place of x (DCNv2: Wang et al., WWW 2021). Beside x, fm: the sum over pairs of fields of a
    factorization machine (Rendle, ICDM 2010); dot: the dot product of every pair of fields (Naumov et al., 2019)."""
    layers: Size = 2
    """Cross layers of dcn."""
    rank: Count = 0
    """Rank of dcn's matrices, W = U V; 0: full ones."""
    normalization: Literal["none", "batch", "layer"] = "none"
    """Of x, numeric features among it: every column over the rows of a global batch, or every row over its columns."""
