"""What a model reads of the tables with sequences: their other features, pooled, and histories, encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from recmtl.config import SequenceConfig
from recmtl.features import is_list
from recmtl.models.embeddings import Embeddings
from recmtl.models.sequences import History, check_histories, encoder_class
from recmtl.schema import FIRST


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
    ) -> dict[str, Tensor]:
        """What a model reads of every table set [B, ·]: x, the other features of the tables, then the histories.

        Args:
            x: pooled embeddings of the other tables.
            rows: what `Embeddings.look_up` gives.
            sparse: the ids.
            longest: most items of a row, by sequence; None: they are counted, for which a GPU's host waits.
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
            length = max(1, int(lengths.max()) if most is None else most)
            row = torch.repeat_interleave(lengths, output_size=len(sparse[history.sequences[0].name].values()))
            bits = self._matches(history, sparse, row)
            for table_set, piece in pieces.items():
                of_set = {name: found[key] for name, key in self._keys[table_set].items()}
                values = [of_set[feature.name] for feature in history.sequences]
                items = pad(torch.cat([*values, *bits], dim=1), lengths, row, length)
                piece.append(self.encode(history, table_set, items, [of_set[t] for t in history.targets], lengths))
        return {table_set: torch.cat(piece, dim=1) for table_set, piece in pieces.items()}

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
