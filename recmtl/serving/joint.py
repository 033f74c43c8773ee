"""Many requests encoded and scored as one batch.

What rows share is encoded once a request, whatever their number. Requests whose columns have other types, or share
others, form groups of their own: joined, an int64 and a float64 column would both lose digits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError
from recmtl.inference.exported import ExportedModel
from recmtl.inference.inputs import Collator, Inputs
from recmtl.serving.columns import Request

Layout = tuple[tuple[str, pa.DataType, bool], ...]
"""Name and type of every column, and whether the rows of a request share its value."""
Answer = np.ndarray | Exception
"""Probabilities, float32 [B, outputs], of a request, or what is wrong with it."""


@dataclass(frozen=True)
class Group:
    """Requests of one layout, encoded."""

    places: list[int]
    """Which requests they are."""
    rows: list[int]
    """How many rows each has."""
    inputs: Inputs | UserError
    """What the model reads of all their rows, or what is wrong with their columns."""


class JointScorer:
    """Scores requests together.

    Args:
        model: what scores.
        observe: called with what the model reads of every batch.
    """

    def __init__(self, model: ExportedModel, observe: Callable[[Inputs, Collator], None]) -> None:
        self.model, self._observe = model, observe
        self._encoder_of = lru_cache(maxsize=64)(self._make_encoder)

    def encode(self, requests: Sequence[Request]) -> list[Group]:
        """Ids and numbers, of requests of one layout together; a mistake in one is no matter of the others."""
        places: dict[Layout, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            places[_layout(request)].append(place)
        return [self._group(found, [requests[place] for place in found]) for found in places.values()]

    def score(self, groups: Sequence[Group]) -> list[Answer]:
        """The answer to each request of what `encode` gave, in the order there."""
        answers: dict[int, Answer] = {}
        for group in groups:
            if isinstance(group.inputs, UserError):
                answers |= dict.fromkeys(group.places, group.inputs)
                continue
            self._observe(group.inputs, self.model.collator)
            ends = np.cumsum(group.rows)[:-1]
            answers |= zip(group.places, np.split(self.model.score(group.inputs), ends), strict=True)
        return [answers[place] for place in range(len(answers))]

    def _group(self, places: list[int], requests: list[Request]) -> Group:
        """Of requests of one layout."""
        rows = [request.rows for request in requests]
        try:
            return Group(places, rows, self.model.collator.collate(self._encode(requests)))
        except UserError as error:
            # All have one layout, and only that can be wrong: values that a type cannot hold are unseen.
            return Group(places, rows, error)

    def _encode(self, requests: list[Request]) -> dict[str, pa.Array]:
        counts = [request.rows for request in requests]
        shared = frozenset(name for name, _, is_shared in _layout(requests[0]) if is_shared)
        encoded: dict[str, pa.Array] = {}
        for names in (shared, frozenset(requests[0].columns) - shared):
            encoder = self._encoder_of(names)
            if not encoder.features:
                continue
            found = encoder.encode({n: _joined([r.columns[n] for r in requests]) for n in encoder.schema.names})
            if names == shared:
                rows = pa.array(np.repeat(np.arange(len(requests)), counts))
                found = {name: column.take(rows) for name, column in found.items()}
            encoded |= found
        return {feature.name: encoded[feature.name] for feature in self.model.encoder.features}

    def _make_encoder(self, columns: frozenset[str]) -> Encoder:
        """The model's encoder for the features of some columns."""
        whole = self.model.encoder
        features = tuple(feature for feature in whole.features if feature.column in columns)
        used = {feature.table for feature in features}
        tables = tuple(table for table in whole.tables if table.name in used)
        schema = pa.schema([field for field in whole.schema if field.name in columns])
        return Encoder(features, tables, whole.lookups, schema)


def _layout(request: Request) -> Layout:
    return tuple((name, c.type, len(c) == 1 and request.rows != 1) for name, c in request.columns.items())


def _joined(columns: list[pa.Array]) -> pa.Array:
    return columns[0] if len(columns) == 1 else pa.concat_arrays(columns)
