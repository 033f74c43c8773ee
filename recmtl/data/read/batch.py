"""One batch of rows, as the training pipeline wants it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """The rows of one step on one rank (B rows, T tasks, N numeric features)."""

    sparse: KeyedJaggedTensor
    """int32 ids of all categorical and list features; keys are feature names, stride B."""
    numeric: Tensor
    """float32 [B, N]."""
    labels: Tensor
    """float32 [B, T]: 0 or 1, or a number in the label's unit; NaN where a row has no label of a task."""
    weights: Tensor
    """float32 [B]: world size over rows in the global batch for a real row, 0 for padding. Summing
    weighted losses here and averaging over ranks gives the mean over the global batch."""
    rows: int
    """Real rows: the first ones. The others, up to B, are padding."""
    oracle: Tensor | None = None
    """float32 [B, T]: true probabilities (NaN where unknown); only in evaluation, and always on the host."""
    row_weights: Tensor | None = None
    """float32 [B, T]: what rows weigh for each task; None: all the same."""
    group: Tensor | None = None
    """int64 [B]: the user a row belongs to; as `oracle`."""
    row_number: Tensor | None = None
    """int64 [B]: the row's place in the split, counted from 0 in the order of the files; as `oracle`."""
    longest: dict[str, int] | None = None
    """Most items of a row, by sequence; None: nobody has counted. A GPU's host would have to wait to find out."""

    def _map(self, function: Callable[[Any], Any]) -> Batch:
        """The batch with what a step reads given to a function; what only metrics read stays as it is."""
        dense = (function(t) for t in (self.numeric, self.labels, self.weights))
        row_weights = None if self.row_weights is None else function(self.row_weights)
        rest = self.oracle, row_weights, self.group, self.row_number, self.longest
        return Batch(function(self.sparse), *dense, self.rows, *rest)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Copy what a step reads to a device."""
        return self._map(lambda t: t.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory, from where copies to a GPU run beside the computation."""
        return self._map(lambda t: t.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that `stream` uses these tensors."""
        self.sparse.record_stream(stream)
        for tensor in (self.numeric, self.labels, self.weights, self.row_weights):
            if tensor is not None:
                tensor.record_stream(stream)
