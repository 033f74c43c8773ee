"""The kinds of features by name."""

from __future__ import annotations

from collections.abc import Iterable

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


class FeatureKinds:
    """The kinds of several features, by what a model does with them; each group in the features' order.

    Args:
        features: of a model.
    """

    def __init__(self, features: Iterable[Feature]) -> None:
        self.all = [make_kind(feature) for feature in features]
        self.with_table = [kind for kind in self.all if isinstance(kind, TableKind)]
        self.categorical = [kind for kind in self.with_table if not kind.is_list]
        """Those with one id per row."""
        self.lists = [kind for kind in self.with_table if kind.is_list]
        self.dense = [kind for kind in self.all if isinstance(kind, DenseKind)]


def has_table(kind: str) -> bool:
    """Whether features of a kind, by its name, have rows in an embedding table."""
    return issubclass(KINDS[kind], TableKind)


def is_list(feature: Feature) -> bool:
    """Whether a feature has any number of ids per row."""
    kind = KINDS[feature.kind]
    return issubclass(kind, TableKind) and kind.is_list


__all__ = ["KINDS", "DenseKind", "FeatureKind", "FeatureKinds", "TableKind", "has_table", "is_list", "make_kind"]
