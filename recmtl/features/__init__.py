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


__all__ = ["KINDS", "DenseKind", "FeatureKind", "TableKind", "make_kind"]
