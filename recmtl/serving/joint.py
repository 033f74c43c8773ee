"""Many requests encoded and scored as one batch.

What rows share is encoded once a request, whatever their number. Requests whose columns have other types, or share
others, form groups of their own: joined, an int64 and a float64 column would both lose digits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recmtl.errors import UserError
from recmtl.inference.exported import ExportedModel
from recmtl.inference.inputs import Collator, Inputs, Shared
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
            return Group(places, rows, self._inputs(requests))
        except UserError as error:
            # All have one layout, and only that can be wrong: values that a type cannot hold are unseen.
            return Group(places, rows, error)

    def _inputs(self, requests: list[Request]) -> Inputs:
        """What the model reads of requests of one layout."""
        encoder = self.model.encoder
        columns = {name: _joined([request.columns[name] for request in requests]) for name in encoder.schema.names}
        columns_shared = {name for name, _, is_shared in _layout(requests[0]) if is_shared}
        features = {feature.name for feature in encoder.features if feature.column in columns_shared}
        places = np.repeat(np.arange(len(requests)), [request.rows for request in requests])
        return self.model.collator.collate(encoder.encode(columns, aligned=True), Shared(features, places))


def _layout(request: Request) -> Layout:
    return tuple((name, c.type, len(c) == 1 and request.rows != 1) for name, c in request.columns.items())


def _joined(columns: list[pa.Array]) -> pa.Array:
    return columns[0] if len(columns) == 1 else pa.concat_arrays(columns)
