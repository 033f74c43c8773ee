"""Presets with settings of their own, `NAME:key=value:key=value`, with values as in TOML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recmtl.config import Config, config_path, parse_config, read_toml, tomllib


def configure(variant: str, settings: Mapping[str, Any]) -> Config:
    """The configuration of a variant.

    Args:
        variant: a preset's name or a TOML file, such as ``stem:embedding.placement='sharded'``.
        settings: what all variants of a benchmark share, by key; the variant's own come after them.
    """
    name, *own = variant.split(":")
    values = read_toml(config_path(name))
    for key, value in [*settings.items(), *map(_setting, own)]:
        section, _, field = key.partition(".")
        values.setdefault(section, {})[field] = value
    return parse_config(values, variant)


def _setting(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    return key, tomllib.loads(f"value = {value}")["value"]


def names(variants: tuple[str, ...]) -> str:
    """What results of several variants are called: their presets, once each."""
    return "+".join(dict.fromkeys(variant.split(":")[0].removesuffix(".toml").split("/")[-1] for variant in variants))
