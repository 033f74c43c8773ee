"""The kinds of features by name."""

from __future__ import annotations

from recmtl.features.base import DenseKind, FeatureKind, TableKind
from recmtl.features.categorical import Categorical
from recmtl.features.multi_hot import MultiHot
from recmtl.features.numeric import Numeric
from recmtl.schema import Feature

KINDS: dict[str, type[FeatureKind]] = {"categorical": Categorical, "list": MultiHot, "numeric": Numeric}
"""Add a kind from outside the package with ``KINDS["name"] = Class`` before the command line runs."""


def make_kind(feature: Feature) -> FeatureKind:
    """The kind of a feature, for it."""
    return KINDS[feature.kind](feature)


def has_table(kind: str) -> bool:
    """Whether features of a kind, by its name, have rows in an embedding table."""
    return issubclass(KINDS[kind], TableKind)


def is_list(feature: Feature) -> bool:
    """Whether a feature has any number of ids per row."""
    kind = KINDS[feature.kind]
    return issubclass(kind, TableKind) and kind.is_list


__all__ = ["KINDS", "DenseKind", "FeatureKind", "TableKind", "has_table", "is_list", "make_kind"]
