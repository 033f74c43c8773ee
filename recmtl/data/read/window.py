"""Several consecutive batches that are filled at once: what a batch costs beside its bytes is paid once for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recmtl.data.read.batch import Batch
from recmtl.data.read.parquet import ParquetSplit
from recmtl.data.read.rows import Lists, Rows


class Window:
    """Room for the rows of consecutive batches of one rank, each with the same number of rows of every stream.

    Memory lies batch after batch, so that a batch is a part of it: ids are [W, C, B], lengths of lists [W, L, B],
    labels [W, B, T] and so on (W batches, B rows, C categorical and L list features, T tasks). What no stream fills is
    padding.

    Args:
        data: the split.
        batches: W.
        size: B.
        streams: how many streams `place` is called for, at most.
    """

    def __init__(self, data: ParquetSplit, batches: int, size: int, streams: int) -> None:
        tasks = len(data.tasks)
        self._data, self._batches, self._size = data, batches, size
        self._ids = np.zeros((batches, len(data.categorical), size), np.int32)
        self._lengths = np.zeros((batches, len(data.lists), size), np.int32)
        self._lists: list[Lists | None] = [None] * streams
        self._sequences = {kind.feature.name: place for place, kind in enumerate(data.lists) if kind.is_sequence}
        self._numeric = np.zeros((batches, size, data.width), np.float32)
        self._labels = np.zeros((batches, size, tasks), np.float32)
        self._extras = (
            np.full((batches, size, tasks), np.nan, np.float32) if data.with_oracle else None,
            np.zeros((batches, size, tasks), np.float32) if data.weight_columns else None,
            np.zeros((batches, size), np.int64) if data.with_group else None,
            np.zeros((batches, size), np.int64) if data.with_row_number else None,
        )

    def place(self, stream: int, rows: Rows, column: int) -> None:
        """Put a stream's rows, W equal parts of them, into all batches. Streams may be placed at the same time.

        Args:
            stream: the stream's place among those of this rank.
            rows: the rows.
            column: where they begin in every batch.
        """
        parts = self._batches, len(rows) // self._batches
        columns = slice(column, column + parts[1])
        self._ids[:, :, columns] = rows.ids.reshape(-1, *parts).swapaxes(0, 1)
        self._lengths[:, :, columns] = rows.lists.lengths.reshape(-1, *parts).swapaxes(0, 1)
        self._lists[stream] = rows.lists
        room = (self._numeric, self._labels, *self._extras)
        for target, values in zip(room, (rows.numeric, rows.labels, *rows.extras), strict=True):
            if target is not None and values is not None:
                target[:, columns] = values.reshape(*parts, *values.shape[1:])

    def batches(self, rows: int, weights: Sequence[float]) -> Iterator[Batch]:
        """The batches.

        Args:
            rows: real rows of each batch.
            weights: by batch, what each of them weighs.
        """
        for number, (weight, sparse) in enumerate(zip(weights, self._sparse(), strict=True)):
            row_weights = np.zeros(self._size, np.float32)
            row_weights[:rows] = weight
            yield Batch(
                sparse,
                torch.from_numpy(self._numeric[number]),
                torch.from_numpy(self._labels[number]),
                torch.from_numpy(row_weights),
                rows,
                *(None if extra is None else torch.from_numpy(extra[number]) for extra in self._extras),
                longest={name: int(self._lengths[number, place].max()) for name, place in self._sequences.items()},
            )

    def _sparse(self) -> Iterator[KeyedJaggedTensor]:
        """Ids of every batch: feature after feature, row after row.

        They say how many ids each feature has, for TorchRec would count them on the device, and the host wait for it.
        """
        data, size = self._data, self._size
        counts = [size] * len(data.categorical)
        ones = torch.ones(len(data.categorical) * size, dtype=torch.int32)
        if not data.lists:
            for ids in self._ids:
                # Without keys there are no lengths to tell the stride by.
                values = torch.from_numpy(ids.reshape(-1))
                yield KeyedJaggedTensor(data.keys, values, lengths=ones, stride=size, length_per_key=counts)
            return
        # All streams' ids of the first list feature, then those of the second one; of each, the parts by batch.
        pieces = [
            lists.pieces(feature, self._batches)
            for feature in range(len(data.lists))
            for lists in self._lists
            if lists is not None
        ]
        for number, (ids, lengths) in enumerate(zip(self._ids, self._lengths, strict=True)):
            values = torch.from_numpy(np.concatenate([ids.reshape(-1), *(piece[number] for piece in pieces)]))
            all_lengths = torch.cat([ones, torch.from_numpy(lengths.reshape(-1))])
            all_counts = [*counts, *lengths.sum(1).tolist()]
            yield KeyedJaggedTensor(data.keys, values, lengths=all_lengths, length_per_key=all_counts)
