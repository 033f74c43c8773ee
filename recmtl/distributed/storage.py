"""What a piece of an embedding table takes beside its weights, told to TorchRec's planner."""

from __future__ import annotations

from typing import Any

from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.types import ParameterConstraints, ShardingOption, Storage, Topology

FLOAT = 4
"""Bytes of a number of an optimiser's state, of a pooled embedding and of a replica, whatever the tables are."""


def weight_bytes(sharding: str, rows: int, dim: int, itemsize: int) -> int:
    """Bytes of the weights; replicas are float32."""
    return rows * dim * (FLOAT if sharding == "data_parallel" else itemsize)


def state_bytes(optimizer: str, rows: int, dim: int) -> int:
    """Bytes of the optimiser's state for `rows` rows of `dim` columns.

    Args:
        optimizer: `embedding.optimizer`.
        rows: of the piece.
        dim: of the piece; row-wise optimisers keep a state a row of every piece.
    """
    floats_a_row = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": dim, "rowwise_adam": dim + 1, "adam": 2 * dim}
    return FLOAT * rows * floats_a_row[optimizer]


def extra_bytes(sharding: str, optimizer: str, rows: int, dim: int) -> int:
    """Optimiser state, and for a replicated table its dense gradient."""
    gradient = rows * dim * FLOAT if sharding == "data_parallel" else 0
    return state_bytes(optimizer, rows, dim) + gradient


class StorageEstimator(EmbeddingStorageEstimator):
    """TorchRec's estimate (weights, inputs, outputs) plus `extra_bytes` and what makes replicas float32.

    By itself TorchRec learns the optimiser only from parameters that have one already, takes its state to be as wide
    as the weights, and knows no dense gradients.

    Args:
        topology: the devices.
        constraints: as the planner's.
        optimizer: `embedding.optimizer`.
    """

    def __init__(self, topology: Topology, constraints: dict[str, ParameterConstraints], optimizer: str) -> None:
        super().__init__(topology=topology, constraints=constraints)
        self._optimizer = optimizer

    def estimate(self, sharding_options: list[ShardingOption], *args: Any, **kwargs: Any) -> None:
        """Fill in the storage of every shard of every option."""
        super().estimate(sharding_options, *args, **kwargs)
        for option in sharding_options:
            itemsize = option.tensor.element_size()
            for shard in option.shards:
                rows, dim = shard.size
                extra = extra_bytes(option.sharding_type, self._optimizer, rows, dim)
                extra += weight_bytes(option.sharding_type, rows, dim, itemsize) - rows * dim * itemsize
                on_gpu = self._topology.compute_device == "cuda"
                assert shard.storage is not None
                shard.storage += Storage(hbm=extra, ddr=0) if on_gpu else Storage(hbm=0, ddr=extra)
