"""What a model reads of the tables with sequences: their other features, pooled, and histories, encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from recmtl.config import SequenceConfig
from recmtl.features import is_list
from recmtl.models.embeddings import Embeddings
from recmtl.models.sequences import History, check_histories, encoder_class
from recmtl.schema import FIRST


class Part(NamedTuple):
    """Some of a batch's rows."""

    lengths: Tensor
    """Items of each row, int [b]."""
    row: Tensor
    """Of every item its row among these, int [n]."""
    longest: int
    """At least the most items of a row, and at least 1."""


class Histories(nn.Module):
    """Appends to x what is looked up row by row. Every table set has encoders of its own.

    Args:
        embeddings: what is looked up.
        config: the `sequence` section of the configuration.
        amp: run encoders under bfloat16 autocast.

    Raises:
        UserError: the encoder does not go with the histories.
    """

    def __init__(self, embeddings: Embeddings, config: SequenceConfig, *, amp: bool) -> None:
        super().__init__()
        check_histories(embeddings.histories, config)
        self.histories, self.features, self.amp = embeddings.histories, embeddings.unpooled_features, amp
        sets = embeddings.table_sets
        self.encoders = nn.ModuleDict(
            {
                _encoder_name(history, table_set): encoder_class(history, config)(history, config)
                for table_set in sets
                for history in self.histories
            }
        )
        sequences = [feature for history in self.histories for feature in history.sequences]
        self._keys = {
            table_set: {f.name: embeddings.key(f, table_set) for f in (*self.features, *sequences)}
            for table_set in sets
        }

    def forward(
        self,
        x: dict[str, Tensor],
        rows: Sequence[Mapping[str, JaggedTensor]],
        sparse: KeyedJaggedTensor,
        longest: Mapping[str, int] | None = None,
        rows_at_once: int = 0,
    ) -> dict[str, Tensor]:
        """What a model reads of every table set [B, ·]: x, the other features of the tables, then the histories.

        Where fewer rows are encoded at once than there are, the encoders keep nothing for the way back but what they
        read: each piece of rows is encoded again then, so that the activations of one piece only are there at once
        (Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016, arXiv 1604.06174).

        Args:
            x: pooled embeddings of the other tables.
            rows: what `Embeddings.look_up` gives.
            sparse: the ids.
            longest: most items of a row, by sequence; None: they are counted, for which a GPU's host waits.
            rows_at_once: rows to encode at a time, for which a GPU's host waits; 0: all.
        """
        # TorchRec's awaitables wait when asked for their items.
        found = {key: jagged.values().float() for collection in rows for key, jagged in collection.items()}
        pieces = {table_set: [values] for table_set, values in x.items()}
        for feature in self.features:
            lengths = sparse[feature.name].lengths() if is_list(feature) else None
            for table_set, piece in pieces.items():
                values = found[self._keys[table_set][feature.name]]
                piece.append(values if lengths is None else pool(values, lengths, feature.pooling))
        for history in self.histories:
            lengths = sparse[history.sequences[0].name].lengths()
            most = None if longest is None else longest[history.sequences[0].name]
            row = torch.repeat_interleave(lengths, output_size=len(sparse[history.sequences[0].name].values()))
            bits = self._matches(history, sparse, row)
            parts = split_rows(lengths, row, most, rows_at_once)
            for table_set, piece in pieces.items():
                of_set = {name: found[key] for name, key in self._keys[table_set].items()}
                values = [of_set[feature.name] for feature in history.sequences]
                targets = [of_set[target] for target in history.targets]
                piece.append(self._encode_parts(history, table_set, [*values, *bits], targets, parts))
        return {table_set: torch.cat(piece, dim=1) for table_set, piece in pieces.items()}

    def _encode_parts(
        self,
        history: History,
        table_set: str,
        values: Sequence[Tensor],
        targets: Sequence[Tensor],
        parts: Sequence[Part],
    ) -> Tensor:
        """A history of all rows [B, `output_width`], part by part.

        Args:
            history: which one.
            table_set: of which copy of the tables.
            values: what an item is made of, side by side, row after row, [n, ·] each.
            targets: embeddings of the history's targets, [B, D] each.
            parts: of the rows.
        """

        def encode(part: Part, values: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
            items = pad(torch.cat(list(values), dim=1), part.lengths, part.row, part.longest)
            return self.encode(history, table_set, items, targets, part.lengths)

        if len(parts) == 1:
            return encode(parts[0], values, targets)
        # Split at once: slices would have a gradient of all rows each.
        of_items = [value.split([len(part.row) for part in parts]) for value in values]
        of_rows = [target.split([len(part.lengths) for part in parts]) for target in targets]
        encoded = []
        for place, part in enumerate(parts):
            arguments = part, [value[place] for value in of_items], [target[place] for target in of_rows]
            if torch.is_grad_enabled():
                encoded.append(checkpoint(encode, *arguments, use_reentrant=False))
            else:
                encoded.append(encode(*arguments))
        return torch.cat(encoded)

    def encode(
        self, history: History, table_set: str, items: Tensor, targets: Sequence[Tensor], lengths: Tensor
    ) -> Tensor:
        """A history as a vector [B, `output_width`], float32.

        Args:
            history: which one.
            table_set: of which copy of the tables.
            items: [B, L, I], what follows the `lengths` of a row without a meaning.
            targets: embeddings of the history's targets, [B, D] each.
            lengths: int [B].
        """
        target = torch.cat([items.new_empty(items.shape[0], 0), *targets], dim=1)
        with self._autocast(items):
            encoded: Tensor = self.encoders[_encoder_name(history, table_set)](items, target, lengths)
        return encoded.float() if self.amp else encoded

    def _matches(self, history: History, sparse: KeyedJaggedTensor, row: Tensor) -> list[Tensor]:
        """The bits of the items [n, 1]; none without `sequence.match`."""
        compared = history.sequences[: history.matches]
        return [
            matches(sparse[feature.name].values(), sparse[feature.target].values()[row]).unsqueeze(1)
            for feature in compared
        ]

    def _autocast(self, items: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(items.device.type, dtype=torch.bfloat16) if self.amp else nullcontext()


def _encoder_name(history: History, table_set: str) -> str:
    # A ModuleDict takes no names of its own attributes: none of them has an @.
    return f"{history.name}@{table_set}"


def split_rows(lengths: Tensor, row: Tensor, longest: int | None, rows_at_once: int) -> list[Part]:
    """Parts of so many rows each, in order.

    Args:
        lengths: items of each row, int [B].
        row: of every item its row, int [n].
        longest: most items of a row; None: they are counted.
        rows_at_once: 0: all rows are one part.
    """
    if not 0 < rows_at_once < len(lengths):
        return [Part(lengths, row, max(1, int(lengths.max()) if longest is None else longest))]
    parts = lengths.split(rows_at_once)
    if lengths.is_meta:  # no values, as memory is planned: the longest row may be in any part
        assert longest is not None
        ends = [len(row) * (place + 1) // len(parts) for place in range(len(parts))]
        counts, most = [end - start for start, end in pairwise([0, *ends])], [longest] * len(parts)
    else:
        by_part = F.pad(lengths.long(), (0, -len(lengths) % rows_at_once)).view(len(parts), -1)
        counts, most = torch.stack([by_part.sum(1), by_part.amax(1)]).tolist()
    rows = row.split(counts)
    return [
        Part(some, of_items - place * rows_at_once, max(1, most[place]))
        for place, (some, of_items) in enumerate(zip(parts, rows, strict=True))
    ]


def matches(ids: Tensor, targets: Tensor) -> Tensor:
    """1 where an id is that of the row, else 0, float32; missing and unseen values are no known ones."""
    return ((ids == targets) & (ids >= FIRST)).float()


def pad(values: Tensor, lengths: Tensor, row: Tensor, length: int) -> Tensor:
    """Values [n, D] of rows one after the other as [B, L, D], 0 behind those of a row.

    Args:
        values: row after row.
        lengths: of the rows, int [B].
        row: of every value its row, int [n].
        length: L, at least the greatest of `lengths`.
    """
    starts = torch.cumsum(lengths, 0) - lengths
    place = torch.arange(values.shape[0], device=values.device) - starts[row]
    padded = values.new_zeros(lengths.shape[0] * length, values.shape[1])
    return padded.index_copy(0, row * length + place, values).view(lengths.shape[0], length, -1)


def pool(values: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Sums or means [B, D] of the values [n, D] of rows one after the other; 0 of a row without any."""
    sums = torch.segment_reduce(values, "sum", lengths=lengths, initial=0.0, unsafe=True)
    return sums / lengths.clamp(min=1).unsqueeze(1) if pooling == "mean" else sums
