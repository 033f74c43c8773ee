"""What a training step needs of a rank's memory at its peak, by part, before anything of its size is made."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from dataclasses import asdict, dataclass

import psutil
import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recmtl.config import Config
from recmtl.data.read.parquet import CACHE_BYTES
from recmtl.data.read.reader import STREAM_ROWS
from recmtl.distributed.live_bytes import LiveBytes
from recmtl.distributed.plan import GIB, Plan
from recmtl.distributed.storage import FLOAT, state_bytes
from recmtl.features import is_list
from recmtl.models.batch_norm import BatchNorm
from recmtl.objectives.train_module import TrainModule
from recmtl.optim.dense import DENSE_STATES
from recmtl.schema import FILE_ROW_GROUPS, ROW_GROUP_ROWS, Dataset

CUDA_PROCESS = GIB // 2
"""CUDA's context and libraries on a GPU. Assumed: PyTorch's allocator does not see them."""
CPU_GROWTH = 60 * 10**6
"""What a process on a CPU grows by in its first steps, whatever it trains. Measured: 24 MB of PyTorch's and FBGEMM's
code that is read from disk; the rest are objects of planning, sharding and threads."""

FOOTER_BYTES = 1000
"""What a Parquet file's footer takes in memory for a column of a row group. Measured: 840 to 950."""


@dataclass(frozen=True)
class Memory:
    """Peak of one rank in a training step, bytes: of the GPU, or on a CPU of the whole process."""

    weights: int
    """Embedding tables."""
    states: int
    """Their optimiser's state, and dense gradients of replicated tables."""
    lookups: int
    """Ids and what is looked up in a batch, pooled embeddings and those of every item of a sequence, as TorchRec's
    planner counts them."""
    dense: int
    """Dense parameters and their optimiser's state, and with several ranks the buckets that gradients travel in."""
    activations: int
    """What the dense part keeps and makes on the way forward and back, gradients among it; of a history it takes that
    a batch has the longest one of the training rows, to which it pads all."""
    holes: int
    """What the heap loses around them: as much as lies in it at once, measured with glibc 2.36; 0 on GPUs."""
    reader: int
    """Decoded rows on the host; 0 on GPUs."""
    staging: int
    """The copy that a checkpoint is written from; 0 without ``checkpoint.background``, and on GPUs, whose copy lies on
    the host."""
    process: int
    """What a process holds that has done nothing yet, and what it grows by whatever it trains."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())


def predict(
    train_module: TrainModule,
    plan: Plan,
    config: Config,
    dataset: Dataset,
    batch_size: int,
    process: int | None = None,
) -> list[Memory]:
    """Memory of every rank. Evaluation and what PyTorch's allocator on GPUs loses are left out.

    Args:
        train_module: what was planned.
        plan: where its tables go.
        config: the run.
        dataset: its data.
        batch_size: rows in one rank's batch.
        process: bytes that a process takes by itself; None: on a CPU as much as this one now, which has imported the
            same, and `CPU_GROWTH`, on a GPU `CUDA_PROCESS`.
    """
    on_cpu, world_size = plan.cluster.device == "cpu", plan.cluster.world_size
    if process is None:
        process = psutil.Process().memory_info().rss + CPU_GROWTH if on_cpu else CUDA_PROCESS
    weights: dict[int, int] = defaultdict(int)
    states: dict[int, int] = defaultdict(int)
    lookups: dict[int, int] = defaultdict(int)
    for shard in plan.shards:
        weights[shard.rank] += shard.weight_bytes
        states[shard.rank] += shard.state_bytes
        lookups[shard.rank] += shard.total_bytes - shard.weight_bytes - shard.state_bytes
    parameters = sum(p.numel() * p.element_size() for p in train_module.dense_parameters())
    dense = parameters * (1 + DENSE_STATES[config.dense.optimizer] + (world_size > 1))
    live = trace_activations(train_module, batch_size, buckets=world_size > 1)
    activations, holes = live.peak, live.heap_peak if on_cpu else 0
    if world_size > 1:  # what was looked up is there twice: as it was, and as received
        activations += FLOAT * batch_size * sum(_outputs(train_module)[1])
        activations += FLOAT * sum(
            jagged.values().numel() for jagged in _unpooled(train_module, batch_size)[0].values()
        )
    reader = reader_bytes(dataset, config, batch_size, world_size) if on_cpu else 0
    copied = on_cpu and config.checkpoint.background
    staging = staging_bytes(train_module, plan, config) if copied else [0] * world_size
    return [
        Memory(weights[rank], states[rank], lookups[rank], dense, activations, holes, reader, staging[rank], process)
        for rank in range(world_size)
    ]


def staging_bytes(train_module: TrainModule, plan: Plan, config: Config) -> list[int]:
    """Host memory of every rank for a copy of its tables, their states and the dense part."""
    parameters = sum(p.numel() * p.element_size() for p in train_module.dense_parameters())
    copied = [parameters * (1 + DENSE_STATES[config.dense.optimizer])] * plan.cluster.world_size
    for shard in plan.shards:
        copied[shard.rank] += shard.weight_bytes + state_bytes(config.embedding.optimizer, shard.rows, shard.dim)
    return copied


def reader_bytes(dataset: Dataset, config: Config, batch_size: int, world_size: int) -> int:
    """Host memory of a rank's reader of the training split.

    Its cache, the row groups that its streams are in, batches that are filled at once and those before them, of which
    the last ones may still be in use, batches ahead of the step, and footers of open files.
    """
    numbers = len(dataset.sparse_features) + sum(feature.width for feature in dataset.dense_features)
    tasks = len(dataset.select_tasks(tuple(config.training.tasks)))
    lists = sum(feature.mean_length for feature in dataset.features if is_list(feature))
    row = FLOAT * (numbers + tasks + lists)
    rows = dataset.rows.get("train", 0) / world_size
    streams = min(config.reader.streams, config.training.batch_size) / world_size
    cached, in_order = min(rows, CACHE_BYTES / row), min(rows, streams * ROW_GROUP_ROWS)
    filled = 2 * min(rows, max(streams * STREAM_ROWS, batch_size)) + config.reader.prefetch * batch_size
    row_groups = min(dataset.rows.get("train", 0) / ROW_GROUP_ROWS, streams * FILE_ROW_GROUPS)
    footers = row_groups * (len(dataset.features) + tasks) * FOOTER_BYTES
    return int(row * (cached + in_order + filled) + footers)


def trace_activations(train_module: TrainModule, batch_size: int, buckets: bool = False) -> LiveBytes:
    """What is alive at once in the networks' forward and backward pass, gradients until the next step begins; their
    parameters and what is looked up left out.

    Found by running it on the meta device, which allocates nothing. Mixed precision is taken as a network that is
    bfloat16 throughout, but for batch normalisation.

    Args:
        train_module: what to run.
        batch_size: rows.
        buckets: gradients are handed on to buckets that have memory of their own.
    """
    ranking_model = train_module.model
    dtype = torch.bfloat16 if ranking_model.amp else torch.float32
    model = copy.deepcopy(ranking_model.dense).to("meta", dtype)
    for part in model.modules():
        if isinstance(part, BatchNorm):  # float32 under autocast, which rounds what the next layer reads
            part.float().register_forward_hook(lambda _part, _given, normalised: normalised.to(dtype))
    size = train_module.micro_batch_size
    whole = not 0 < size < batch_size
    histories = copy.deepcopy(ranking_model.histories)
    if histories is not None:
        histories.to("meta").amp = False
        rows, sparse, longest = _unpooled(train_module, batch_size)
    if buckets:
        for part in ([model] if whole else []) + ([] if histories is None else [histories]):
            for parameter in part.parameters():
                parameter.register_post_accumulate_grad_hook(_forget)
    names, widths = _outputs(train_module)
    pooled = torch.zeros(batch_size, sum(widths), device="meta", requires_grad=True)
    pooled.register_post_accumulate_grad_hook(_forget)  # the tables take it

    def forward_and_backward(x: dict[str, Tensor]) -> None:
        first = next(iter(x.values()))
        if numbers := ranking_model.embeddings.width - first.shape[1]:
            numeric = torch.zeros(len(first), numbers, device="meta")
            x = {table_set: torch.cat([values, numeric], dim=1) for table_set, values in x.items()}
        model({table_set: values.to(dtype) for table_set, values in x.items()}).float().sum().backward()

    with LiveBytes() as live:
        x = ranking_model.embeddings.regroup(KeyedTensor(names, widths, pooled))
        if histories is not None:
            x = histories(x, [rows], sparse, longest, size)
        if whole:
            forward_and_backward(x)
        else:
            gradients = [torch.empty_like(values) for values in x.values()]
            for _ in range(2):  # the second finds the gradients that the first left
                forward_and_backward({key: values[:size].detach().requires_grad_() for key, values in x.items()})
            # Those of a single table set reach the tables without a copy.
            if len(gradients) > 1 or histories is not None:
                torch.autograd.backward(list(x.values()), gradients)
    return live


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _unpooled(
    train_module: TrainModule, batch_size: int
) -> tuple[dict[str, JaggedTensor], KeyedJaggedTensor, dict[str, int]]:
    """What the other tables return by name, the ids, and most items of a row by sequence, all on the meta device."""
    embeddings = train_module.model.embeddings
    tables = [table for table in embeddings.tables if isinstance(table, EmbeddingConfig)]
    features = [name for table in tables for name in table.feature_names]
    counts = {name: math.ceil(batch_size * embeddings.lengths[name]) for name in features}
    lengths = torch.ones(len(counts) * batch_size, dtype=torch.int32, device="meta")
    ids = torch.zeros(sum(counts.values()), dtype=torch.int32, device="meta")
    sparse = KeyedJaggedTensor(list(counts), ids, lengths=lengths, length_per_key=list(counts.values()))
    rows = {}
    for table, names in zip(tables, get_embedding_names_by_table(tables), strict=True):
        for feature, name in zip(table.feature_names, names, strict=True):
            values = torch.zeros(counts[feature], table.embedding_dim, device="meta", requires_grad=True)
            values.register_post_accumulate_grad_hook(_forget)
            rows[name] = JaggedTensor(values, lengths=lengths[:batch_size])
    sequences = [feature for history in embeddings.histories for feature in history.sequences]
    return rows, sparse, {feature.name: feature.longest for feature in sequences}


def _outputs(train_module: TrainModule) -> tuple[list[str], list[int]]:
    """Names and widths of what the tables that pool return."""
    tables = [table for table in train_module.model.embeddings.tables if isinstance(table, EmbeddingBagConfig)]
    names = [name for names in get_embedding_names_by_table(tables) for name in names]
    return names, [table.embedding_dim for table in tables for _ in table.feature_names]
