"""The models by name."""

from __future__ import annotations

from typing import Any

from recmtl.config import Config, config_class, config_path, parse, read_toml
from recmtl.errors import UserError, nearest
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
from recmtl.models.pepnet import PEPNet
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
    "pepnet": PEPNet,
}
"""Add a model from outside the package with ``MODELS["name"] = Class`` before the command line runs."""


def model_class(name: str, key: str = "model.name") -> type[Model]:
    """The model called `name`.

    Raises:
        UserError: there is none; names the configuration's `key`.
    """
    if name not in MODELS:
        raise UserError(f"{key}: no model '{name}'; {nearest(str(name), MODELS)}")
    return MODELS[name]


def parse_config(values: dict[str, Any], where: str) -> Config:
    """A run's configuration from nested dictionaries, as TOML gives them; its model section is of the model it names.

    Args:
        values: the sections.
        where: the file, for messages.

    Raises:
        UserError: no model is named, a key is unknown or a value of the wrong type; names file and key.
    """
    model = values.get("model")
    if not isinstance(model, dict) or "name" not in model:
        raise UserError(f"{where}: key 'model.name' is missing; `recmtl models` lists the models")
    return parse(config_class(model_class(model["name"]).config_type(model)), values, where)


def load_config(name_or_path: str) -> Config:
    """The configuration of a preset or a TOML file, checked.

    Raises:
        UserError: there is no such preset or file, or it has a mistake; names file and key.
    """
    path = config_path(name_or_path)
    config = parse_config(read_toml(path), str(path))
    config.validate()
    return config


__all__ = ["MODELS", "Inputs", "Model", "load_config", "model_class", "parse_config"]
