"""Many requests encoded and scored as one batch.

What rows share is encoded once a request, whatever their number. Requests whose columns have other types, or share
others, form groups of their own: joined, an int64 and a float64 column would both lose digits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
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


class JointScorer:
    """Scores requests together.

    Args:
        model: what scores.
        observe: called with what the model reads of every batch.
    """

    def __init__(self, model: ExportedModel, observe: Callable[[Inputs, Collator], None]) -> None:
        self.model, self._observe = model, observe
        self._encoder_of = lru_cache(maxsize=64)(self._make_encoder)

    def score(self, requests: Sequence[Request]) -> list[Answer]:
        """The answer to each request; a mistake in one is no matter of the others."""
        groups: dict[Layout, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[_layout(request)].append(place)
        answers: list[Answer] = [UserError("not scored")] * len(requests)
        for places in groups.values():
            for place, answer in zip(places, self._score([requests[place] for place in places]), strict=True):
                answers[place] = answer
        return answers

    def _score(self, requests: list[Request]) -> list[Answer]:
        """Of requests of one layout."""
        try:
            inputs = self.model.collator.collate(self._encode(requests))
        except UserError as error:
            # All have one layout, and only that can be wrong: values that a type cannot hold are unseen.
            return [error] * len(requests)
        self._observe(inputs, self.model.collator)
        ends = np.cumsum([request.rows for request in requests])
        return list(np.split(self.model.score(inputs), ends[:-1]))

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
