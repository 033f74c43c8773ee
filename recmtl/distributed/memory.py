"""What a training step needs of a rank's memory at its peak, by part, before anything of its size is made."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import asdict, dataclass

import psutil
import torch
from torch import Tensor
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedTensor

from recmtl.config import Config
from recmtl.data.dataset import Dataset
from recmtl.data.parquet import CACHE_BYTES
from recmtl.data.shards import ROW_GROUP_ROWS
from recmtl.distributed.heap import LiveBytes
from recmtl.distributed.plan import GIB, Plan
from recmtl.distributed.storage import FLOAT
from recmtl.models.ranker import Ranker

CUDA_PROCESS = GIB // 2
"""CUDA's context and libraries on a GPU. Assumed: PyTorch's allocator does not see them."""
CPU_CODE = 24 * 10**6
"""Pages of PyTorch's and FBGEMM's code that a process on a CPU reads from disk in its first steps. Measured: the same
for every model."""
DENSE_STATES = {"adam": 2, "adamw": 2, "adagrad": 1, "sgd": 0}
"""Copies of the dense parameters that their optimiser keeps."""


@dataclass(frozen=True)
class Memory:
    """Peak of one rank in a training step, bytes: of the GPU, or on a CPU of the whole process."""

    weights: int
    """Embedding tables."""
    states: int
    """Their optimiser's state, and dense gradients of replicated tables."""
    lookups: int
    """Ids and pooled embeddings of a batch, as TorchRec's planner counts them."""
    dense: int
    """Dense parameters, gradients and optimiser state."""
    activations: int
    """What the dense part keeps and makes on the way forward and back."""
    holes: int
    """What the heap that holds them loses between them; 0 on GPUs."""
    reader: int
    """Decoded rows on the host; 0 on GPUs."""
    process: int
    """What a process holds that has done nothing yet, and the code it reads."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())


def predict(
    ranker: Ranker, plan: Plan, config: Config, dataset: Dataset, batch_size: int, process: int | None = None
) -> list[Memory]:
    """Memory of every rank. Checkpoints, evaluation and what PyTorch's allocator on GPUs loses are left out.

    Args:
        ranker: what was planned.
        plan: where its tables go.
        config: the run.
        dataset: its data.
        batch_size: rows in one rank's batch.
        process: bytes that a process takes by itself; None: on a CPU as much as this one now, which has imported the
            same, and `CPU_CODE`, on a GPU `CUDA_PROCESS`.
    """
    on_cpu, world_size = plan.cluster.device == "cpu", plan.cluster.world_size
    if process is None:
        process = psutil.Process().memory_info().rss + CPU_CODE if on_cpu else CUDA_PROCESS
    weights: dict[int, int] = defaultdict(int)
    states: dict[int, int] = defaultdict(int)
    lookups: dict[int, int] = defaultdict(int)
    for shard in plan.shards:
        weights[shard.rank] += shard.weight_bytes
        states[shard.rank] += shard.state_bytes
        lookups[shard.rank] += shard.total_bytes - shard.weight_bytes - shard.state_bytes
    parameters = sum(p.numel() * p.element_size() for p in ranker.head.parameters())
    dense = parameters * (2 + DENSE_STATES[config.dense.optimizer])
    live = trace_activations(ranker, batch_size)
    activations, holes = live.peak, live.heap.peak - live.peak if on_cpu else 0
    if world_size > 1:  # pooled embeddings are there twice: as looked up, and as received
        activations += FLOAT * batch_size * sum(_outputs(ranker)[1])
    reader = reader_bytes(dataset, config, batch_size, world_size) if on_cpu else 0
    return [
        Memory(weights[rank], states[rank], lookups[rank], dense, activations, holes, reader, process)
        for rank in range(world_size)
    ]


def reader_bytes(dataset: Dataset, config: Config, batch_size: int, world_size: int) -> int:
    """Host memory of a rank's reader of the training split.

    Its cache, the row groups that its streams are in, shuffled, and batches ahead of the step.
    """
    lists = [f for f in dataset.features if f.kind == "list"]
    numbers = len(dataset.features) + len(dataset.select_tasks(tuple(config.training.tasks)))
    row = FLOAT * (numbers + sum(1.0 if f.mean_length is None else f.mean_length for f in lists))
    split = dataset.rows.get("train", 0) * row / world_size
    streams = min(config.reader.streams, config.training.batch_size) / world_size
    open_groups = streams * ROW_GROUP_ROWS * row if config.reader.shuffle else 0
    return int(min(split, CACHE_BYTES) + min(split, open_groups) + config.reader.prefetch * batch_size * row)


def trace_activations(ranker: Ranker, batch_size: int) -> LiveBytes:
    """What is alive at once in the dense part's forward and backward pass: its parameters and the pooled embeddings
    left out, the gradient of these counted.

    Found by running it on the meta device, which allocates nothing. Mixed precision is taken as a network that is
    bfloat16 throughout.
    """
    dtype = torch.bfloat16 if ranker.head.amp else torch.float32
    model = copy.deepcopy(ranker.head.model).to("meta", dtype)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(_forget)  # a gradient counts as dense memory
    names, widths = _outputs(ranker)
    pooled = torch.zeros(batch_size, sum(widths), device="meta", requires_grad=True)
    pooled.register_post_accumulate_grad_hook(_forget)

    def step() -> None:
        x = ranker.embeddings.regroup(KeyedTensor(names, widths, pooled))
        if numbers := ranker.embeddings.width - next(iter(x.values())).shape[1]:
            numeric = torch.zeros(batch_size, numbers, device="meta")
            x = {group: torch.cat([values, numeric], dim=1) for group, values in x.items()}
        model({group: values.to(dtype) for group, values in x.items()}).float().sum().backward()

    with LiveBytes() as live:
        step()
        step()  # finds the holes that the first left
    return live


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _outputs(ranker: Ranker) -> tuple[list[str], list[int]]:
    """Names and widths of what the tables return."""
    tables = ranker.embeddings.collection.embedding_bag_configs()
    names = [name for names in get_embedding_names_by_table(tables) for name in names]
    return names, [table.embedding_dim for table in tables for _ in table.feature_names]
