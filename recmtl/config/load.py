"""A run's configuration from a preset or a TOML file."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import field
from pathlib import Path
from typing import Any

from recmtl.config.models import find_model
from recmtl.config.sections import Config
from recmtl.config.toml import read_toml
from recmtl.errors import UserError, nearest
from recmtl.runtime.storage import is_file, list_folder, parse_path
from recmtl.typed import from_dict

PRESETS = Path(__file__).parent / "presets"


@functools.cache
def config_class(sizes: type) -> type[Config]:
    """`Config` with the model section typed as `sizes`, so that its keys are checked and shown in help."""
    return dataclasses.make_dataclass(
        "Config",
        [("model", sizes, field(default_factory=sizes))],
        bases=(Config,),
        namespace={"__doc__": "A training run."},
    )


def preset_names() -> list[str]:
    """Names of the presets in the package."""
    return [path.stem for path in list_folder(PRESETS, "*.toml")]


def config_path(name_or_path: str) -> Path:
    """The file of a preset, or the path itself when it ends in ``.toml``.

    Raises:
        UserError: no preset has the name.
    """
    if name_or_path.endswith(".toml"):
        return parse_path(name_or_path)
    if name_or_path not in preset_names():
        raise UserError(
            f"'{name_or_path}' is neither a preset nor a .toml file; {nearest(name_or_path, preset_names())}"
        )
    return PRESETS / f"{name_or_path}.toml"


def parse_config(values: dict[str, Any], where: str) -> Config:
    """A run's configuration from nested dictionaries, as TOML gives them; its model section is of the model it names.

    Args:
        values: the sections.
        where: the file, for messages.

    Raises:
        UserError: no model is named or none has the name, a key is unknown, a value of the wrong type or out of range;
            names file and key.
    """
    model = values.get("model")
    if not isinstance(model, dict) or "name" not in model:
        raise UserError(f"{where}: key 'model.name' is missing; `recmtl models` lists the models")
    try:
        sizes = find_model(model["name"]).config.resolve(model)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return from_dict(config_class(sizes), values, where)


def load_run_config(run: Path) -> Config:
    """The configuration of a run folder.

    Raises:
        UserError: it has none, or one with a mistake.
    """
    path = run / "config.toml"
    if not is_file(path):
        raise UserError(f"{run}: no config.toml in it; name a run folder that `recmtl train` wrote")
    return load_config(str(path))


def load_config(name_or_path: str) -> Config:
    """The configuration of a preset or a TOML file.

    Raises:
        UserError: there is no such preset or file, or it has a mistake; names file and key.
    """
    path = config_path(name_or_path)
    return parse_config(read_toml(path), str(path))
