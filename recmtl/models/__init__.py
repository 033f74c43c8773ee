"""The models by name."""

from __future__ import annotations

from recmtl.errors import UserError
from recmtl.models.adatt import AdaTT
from recmtl.models.aitm import AITM
from recmtl.models.base import Inputs, Model
from recmtl.models.cgc import CGC
from recmtl.models.esmm import ESMM
from recmtl.models.home import HoME
from recmtl.models.me_mmoe import MEMMoE
from recmtl.models.me_ple import MEPLE
from recmtl.models.mmoe import MMoE
from recmtl.models.omoe import OMoE
from recmtl.models.ple import PLE
from recmtl.models.shared_bottom import SharedBottom
from recmtl.models.single_task import SingleTask
from recmtl.models.stem import STEM

MODELS: dict[str, type[Model]] = {
    "single_task": SingleTask,
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "omoe": OMoE,
    "cgc": CGC,
    "ple": PLE,
    "adatt": AdaTT,
    "home": HoME,
    "stem": STEM,
    "me_mmoe": MEMMoE,
    "me_ple": MEPLE,
    "esmm": ESMM,
    "aitm": AITM,
}
"""Add a model from outside the package with ``MODELS["name"] = Class`` before the command line runs."""


def model_class(name: str) -> type[Model]:
    """The model called `name`.

    Raises:
        UserError: there is none; lists those there are.
    """
    if name not in MODELS:
        raise UserError(f"model.name: no model '{name}'; choose one of {', '.join(MODELS)}")
    return MODELS[name]


__all__ = ["MODELS", "Inputs", "Model", "model_class"]
