"""What comes with recmtl, listed and printed: models, recipes and presets."""

from __future__ import annotations

import sys
from pathlib import Path

from recmtl.arguments import Catalogue, Listing, Show
from recmtl.config import MODELS, PRESETS, config_path, preset_names, read_toml
from recmtl.errors import UserError, nearest
from recmtl.options import parse_words
from recmtl.runtime.storage import read_text


def models(arguments: list[str]) -> None:
    """List the models."""
    parse_words(Listing, arguments, "models")
    for name, entry in MODELS.items():
        print(f"{name:16} {entry.description}")


def recipes(arguments: list[str]) -> None:
    """List the recipes, or print one."""
    from recmtl.data.recipe import PACKAGED, load_recipe, recipe_names

    if arguments[:1] == ["show"]:
        return _show("recipe", recipe_names(), PACKAGED, arguments[1:])
    parse_words(Catalogue, arguments, "recipes")
    for name in recipe_names():
        print(f"{name:16} {load_recipe(name).description}")


def presets(arguments: list[str]) -> None:
    """List the presets, or print one."""
    if arguments[:1] == ["show"]:
        return _show("preset", preset_names(), PRESETS, arguments[1:])
    parse_words(Catalogue, arguments, "presets")
    for name in preset_names():
        first = read_text(config_path(name)).splitlines()[0]
        print(f"{name:24} {first.lstrip('# ')}")


def _show(kind: str, names: list[str], folder: Path, arguments: list[str]) -> None:
    """Print the file of a recipe or preset, and say which one it extends."""
    name = parse_words(Show, arguments, f"{kind}s show").name
    if name not in names:
        raise UserError(f"no {kind} '{name}'; {nearest(name, names)}")
    path = folder / f"{name}.toml"
    print(read_text(path), end="")
    if parent := read_toml(path).get("extends"):
        print(f"{name} extends {parent}: `recmtl {kind}s show {parent}` prints what it builds on", file=sys.stderr)
