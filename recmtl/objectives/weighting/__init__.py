"""Task weighting by name: how the tasks' losses become the one that is minimised."""

from __future__ import annotations

from torch import Tensor

from recmtl.config import WeightingConfig
from recmtl.objectives.weighting.base import Weighting
from recmtl.objectives.weighting.dwa import DWA
from recmtl.objectives.weighting.gradnorm import GradNorm
from recmtl.objectives.weighting.multibalance import MultiBalance
from recmtl.objectives.weighting.pcgrad import PCGrad
from recmtl.objectives.weighting.uncertainty import Uncertainty

METHODS: dict[str, type[Weighting]] = {
    "fixed": Weighting,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "multibalance": MultiBalance,
}
"""The choices of `weighting.method`."""


def make_weighting(config: WeightingConfig, task_weights: Tensor) -> Weighting:
    """The weighting that `config` names, for tasks with these weights in the recipe [T]."""
    return METHODS[config.method](config, task_weights)


__all__ = ["METHODS", "Weighting", "make_weighting"]
