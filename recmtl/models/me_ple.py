"""ME-PLE: PLE on embedding tables of every task's own, a baseline of the STEM paper (Su et al., AAAI 2024)."""

from __future__ import annotations

from dataclasses import dataclass, fields

from recmtl.models.base import Inputs
from recmtl.models.cgc import CGCConfig
from recmtl.models.stem import STEM, STEMConfig


@dataclass
class MEPLEConfig(CGCConfig):
    """Sizes of ME-PLE."""

    name: str = "me_ple"
    """Model name."""
    levels: int = 1
    """Number of levels, all of the same sizes."""


class MEPLE(STEM):
    r"""STEM's wiring without cross-task mixing and without stop-gradient.

    h_t = softmax(W_t (x_t + x_S))·[own experts of t (x_t); shared experts(x_S)] [B, H]; logit_t = tower_t(h_t).
    With more levels the shared gate sees all experts and trains them, as PLE's does.

    The paper names this baseline in its experiments and gives no equations; this is the wiring that leaves STEM's two
    ideas out and nothing else.
    """

    Config = MEPLEConfig

    def __init__(self, config: MEPLEConfig, inputs: Inputs) -> None:
        sizes = {f.name: getattr(config, f.name) for f in fields(config)}
        super().__init__(STEMConfig(**sizes, cross_task=False, stop_gradient=False), inputs)
