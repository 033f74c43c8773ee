"""PLE: CGC in levels, where tasks separate step by step (Tang et al., RecSys 2020, section 4.2)."""

from __future__ import annotations

from recmtl.config.models import PLEConfig
from recmtl.models.base import Inputs
from recmtl.models.cgc import CGC


class PLE(CGC):
    r"""Progressive layered extraction: levels of CGC on top of each other (section 4.2).

    Level l, with h_t = h_S = x [B, width] at the first:
        z_t = softmax(W_t h_t)·[own experts of t (h_t); shared experts(h_S)] [B, H], the next level's h_t;
        z_S = softmax(W_S h_S)·[all experts of all tasks; shared experts(h_S)] [B, H], the next level's h_S, on all
        levels but the last.
    logit_t = tower_t(z_t) of the last level.
    """

    def __init__(self, config: PLEConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs, levels=config.levels)
