"""What a checkpoint is written from while training goes on: a copy of this rank's state in the host's memory."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem

Buffers = dict[MetadataIndex, Tensor]
"""Host memory by what it is a copy of."""


class StagedPlanner(DefaultSavePlanner):
    """Plans to write a state as it is now, whatever becomes of its tensors afterwards.

    Args:
        state: nested dictionaries of tensors, sharded ones among them, and plain values.
        is_first: whether this is the first rank, which PyTorch calls the coordinator.
        buffers: host memory from an earlier state of the same shapes, which is used again: pages that are new to a
            process cost more than the copy. What is missing is added. None: nothing is copied, and the state must stay
            as it is until it is written.
    """

    def __init__(self, state: dict[str, Any], is_first: bool, buffers: Buffers | None) -> None:
        super().__init__()
        super().set_up_planner(state, is_coordinator=is_first)
        self._copies: dict[MetadataIndex, Tensor | BytesIO] = {}
        if buffers is not None:
            for item in self.create_local_plan().items:
                value = super().resolve_data(item)
                self._copies[item.index] = _copy(value, buffers, item.index) if isinstance(value, Tensor) else value

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Do nothing: PyTorch calls this when it begins to write, and the state was planned before."""

    def resolve_data(self, write_item: WriteItem) -> Tensor | BytesIO:
        """What to write of a tensor or value."""
        if write_item.index in self._copies:
            return self._copies[write_item.index]
        value = super().resolve_data(write_item)
        # PyTorch copies what shares its memory with other tensors, as a rank's tables do. NumPy knows of no sharing.
        return torch.from_numpy(value.detach().numpy()) if isinstance(value, Tensor) and value.is_cpu else value


def _copy(value: Tensor, buffers: Buffers, index: MetadataIndex) -> Tensor:
    value = value.detach()
    if index not in buffers:
        buffers[index] = torch.empty_like(value, device="cpu")
    return buffers[index].copy_(value)
