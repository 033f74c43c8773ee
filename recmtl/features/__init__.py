"""The kinds of features by name."""

from __future__ import annotations

from collections.abc import Iterable

from recmtl.features.base import DenseKind, FeatureKind, TableKind
from recmtl.features.categorical import Categorical
from recmtl.features.multi_hot import MultiHot
from recmtl.features.numeric import Numeric
from recmtl.features.sequence import Sequence
from recmtl.schema import Feature

KINDS: dict[str, type[FeatureKind]] = {
    "categorical": Categorical,
    "list": MultiHot,
    "numeric": Numeric,
    "sequence": Sequence,
}
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
        self.sequences = [kind for kind in self.lists if kind.is_sequence]
        self.sequence_places = tuple(place for place, kind in enumerate(self.lists) if kind.is_sequence)
        """Where they are among the lists."""
        self.dense = [kind for kind in self.all if isinstance(kind, DenseKind)]


def has_table(kind: str) -> bool:
    """Whether features of a kind, by its name, have rows in an embedding table."""
    return issubclass(KINDS[kind], TableKind)


def is_list(feature: Feature) -> bool:
    """Whether a feature has any number of ids per row."""
    kind = KINDS[feature.kind]
    return issubclass(kind, TableKind) and kind.is_list


def is_sequence(feature: Feature) -> bool:
    """Whether a model reads the embeddings of a feature's items one by one, in their order."""
    kind = KINDS[feature.kind]
    return issubclass(kind, TableKind) and kind.is_sequence


__all__ = [
    "KINDS",
    "DenseKind",
    "FeatureKind",
    "FeatureKinds",
    "TableKind",
    "has_table",
    "is_list",
    "is_sequence",
    "make_kind",
]
