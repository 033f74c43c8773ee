"""ME-PLE: PLE on embedding tables of every task's own, a baseline of the STEM paper (Su et al., AAAI 2024)."""

from __future__ import annotations

from dataclasses import fields

from recmtl.config.models import MEPLEConfig, STEMConfig
from recmtl.models.base import Inputs
from recmtl.models.stem import STEM


class MEPLE(STEM):
    r"""STEM's wiring without cross-task mixing and without stop-gradient.

    h_t = softmax(W_t (x_t + x_S))·[own experts of t (x_t); shared experts(x_S)] [B, H]; logit_t = tower_t(h_t).
    With more levels the shared gate sees all experts and trains them, as PLE's does.

    The paper names this baseline in its experiments and gives no equations; this is the wiring that leaves STEM's two
    ideas out and nothing else.
    """

    def __init__(self, config: MEPLEConfig, inputs: Inputs) -> None:
        sizes = {f.name: getattr(config, f.name) for f in fields(config)}
        super().__init__(STEMConfig(**sizes, cross_task=False, stop_gradient=False), inputs)
