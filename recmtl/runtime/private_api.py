"""Everything of PyTorch and TorchRec that recmtl uses and that they do not promise to keep: look here first when a new
version of them breaks something.

- ``TorchDispatchMode``, ``tree_leaves``: see every operation and every tensor in its arguments.
- ``ShardedTensor``: what a sharded table is in a model's state.
- ``apply_optimizer_in_backward``: gives parameters the optimiser that TorchRec fuses into the backward pass.
- `chosen_options`, `has_pipelined_modules`: what TorchRec's planner and pipeline do not tell otherwise.
- ``create_chunk_list``, ``create_read_items``, ``create_read_items_for_chunk_list``: what this rank holds of a tensor,
  and what it must read for it from a checkpoint.
- ``flash_attention``: the CPU's kernel of attention, by itself.
- `values_offset`: what ``torch.load`` reads is not told otherwise.
- `INDEX_CLASSES`: what the index of a checkpoint is made of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.planner_helpers import _create_chunk_list as create_chunk_list
from torch.distributed.checkpoint.planner_helpers import _create_read_items as create_read_items
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

INDEX_CLASSES = {
    "pathlib": ("PosixPath",),
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
}
"""All that the index of a checkpoint is made of, by module; beside these, PyTorch's types of numbers."""


def chosen_options(planner: EmbeddingShardingPlanner) -> list[ShardingOption]:
    """What a planner chose for every table, with its estimates, once it has made a plan."""
    return planner._best_plan or []


def values_offset(file: Any) -> int:
    """Where the values of a tensor lie in what ``torch.save`` wrote of it alone, an archive without compression."""
    file.seek(0)
    reader: Any = torch._C.PyTorchFileReader(file)
    offset: int = reader.get_record_offset("data/0")
    return offset


def has_pipelined_modules(pipeline: TrainPipelineSparseDist) -> bool:
    """Whether a pipeline that has begun overlaps any module's exchange of ids with the step before."""
    return bool(pipeline._pipelined_modules)


__all__ = [
    "INDEX_CLASSES",
    "ShardedTensor",
    "TorchDispatchMode",
    "apply_optimizer_in_backward",
    "chosen_options",
    "create_chunk_list",
    "create_read_items",
    "create_read_items_for_chunk_list",
    "flash_attention",
    "has_pipelined_modules",
    "tree_leaves",
    "values_offset",
]
