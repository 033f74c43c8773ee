"""A run's configuration: one dataclass a section. Every field has a default, a unit and a line of help."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, Literal

import tyro

from recmtl.errors import UserError

ShardingType = Literal["auto", "table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard", "data_parallel"]


@dataclass
class EmbeddingConfig:
    """Embedding tables and their optimiser, which runs inside backward."""

    dim: int = 16
    """Embedding dimension of every table that the recipe gives none; a multiple of 4."""
    dtype: Literal["float32", "float16"] = "float32"
    """Numbers of the tables; float16 halves them. Updates round at random on GPUs, to the nearest on CPUs."""
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam", "rowwise_adam"] = "rowwise_adagrad"
    """Sparse optimiser fused into backward; adam and rowwise_adam need CUDA."""
    lr: float = 0.05
    """Learning rate of the sparse optimiser."""
    eps: float = 1e-8
    """Added to the root of the accumulator (Adagrad and Adam)."""
    init_scale: float = 1.0
    """Rows start uniform in ±init_scale/√rows."""
    placement: Literal["auto", "data_parallel", "sharded"] = "auto"
    """Where tables of tasks' own (stem, me_*) lie; auto replicates the smallest on several ranks. Same losses."""
    replica_mib: float = 64.0
    """Memory of each rank that auto may fill with replicas, their gradients and optimiser states, in MiB."""


@dataclass
class DenseConfig:
    """Optimiser of the dense part (experts, gates, towers)."""

    optimizer: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    """Dense optimiser."""
    lr: float = 1e-3
    """Learning rate of the dense optimiser."""
    weight_decay: float = 0.0
    """L2 penalty (decoupled for adamw)."""


@dataclass
class WeightingConfig:
    """How the losses of several tasks become one; the recipe's weights multiply whatever the method gives."""

    method: Literal["fixed", "uncertainty", "dwa", "gradnorm", "pcgrad"] = "fixed"
    """fixed: the recipe's weights alone; the others change weights (pcgrad: gradients) as training goes on."""
    temperature: float = 2.0
    """Temperature τ of dwa's softmax: the higher, the more alike the weights."""
    alpha: float = 1.5
    """Exponent α of gradnorm: how strongly slower tasks are favoured; 0: gradients of one size."""
    lr: float = 0.025
    """Learning rate, with Adam, of what uncertainty and gradnorm learn."""


@dataclass
class TrainingConfig:
    """The loop: how long, on what, in which order."""

    batch_size: int = 4096
    """Rows in a global batch, over all ranks."""
    micro_batch_size: int = 0
    """Rows of a rank's batch that go through the dense part at a time, for less memory; 0: all. Their gradients add
    up: the step stays the same."""
    max_epochs: int = 20
    """Passes over the training split, at most."""
    max_steps: int = 0
    """Stop after this many steps in all; 0: no limit."""
    patience: int = 1
    """Epochs in a row without a better validation loss (the sum over tasks by the recipe's weights) before training
    stops; 0: never stop early."""
    seed: int = 100
    """Seed of the initial weights and of the order of rows."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--tasks",))] = ()
    """Tasks to train, by name; none: all of the recipe's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes CUDA where there is a GPU."""
    amp: Literal["none", "bf16"] = "none"
    """Autocast of the dense part."""
    clip_norm: float = 0.0
    """Largest gradient norm of the dense part; 0: no clipping."""
    warmup_steps: int = 0
    """Steps over which both learning rates rise linearly from 0; 0: none."""


@dataclass
class CheckpointConfig:
    """Checkpoints: a folder a step under the run's checkpoints/, complete or absent."""

    every_steps: int = 0
    """Also write one every so many steps; 0: at the end of an epoch only."""
    keep: int = 2
    """How many of the newest to keep; the best epoch's is always kept."""
    resume: bool = True
    """Go on from the newest checkpoint where the run folder has one."""


@dataclass
class MetricsConfig:
    """What is logged and measured."""

    every_steps: int = 50
    """Steps between two lines of metrics.jsonl."""
    gauc: bool = True
    """Measure the AUC within users where the recipe names the user's column."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""


@dataclass
class ShardingConfig:
    """How the planner places tables on devices."""

    type: ShardingType = "auto"
    """Sharding of every table; auto leaves it to TorchRec's planner."""
    tables: dict[str, ShardingType] = field(default_factory=dict)
    """Sharding of single tables, by name, before `type`."""
    device_memory_gib: float = 0.0
    """Memory of one device in GiB; 0: what the device says it has."""
    reserve: float = 0.15
    """Fraction of the device memory the planner leaves free for activations and the dense part."""


@dataclass
class ReaderConfig:
    """How rows are read."""

    streams: int = 64
    """Row ranges read side by side, dealt out over ranks: at least the number of ranks. Part of the row order."""
    prefetch: int = 4
    """Batches that a background thread decodes ahead of the step."""
    shuffle: bool = True
    """Visit the training rows in another order every epoch."""


@dataclass
class Config:
    """A run. `model` holds the model's own sizes: its class is the one that the registry names."""

    model: Any
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    reader: ReaderConfig = field(default_factory=ReaderConfig)

    def validate(self) -> None:
        """Check what types cannot say.

        Raises:
            UserError: a value is out of range; names the key.
        """
        for key, value in _values(self, ""):
            for number in value if isinstance(value, tuple) else (value,):
                if type(number) in (int, float):
                    _check_number(key, number)
        if self.embedding.dim % 4:
            raise UserError(f"embedding.dim: must be a multiple of 4, not {self.embedding.dim}")
        if not 0 <= self.sharding.reserve < 1:
            raise UserError(f"sharding.reserve: a fraction from 0 to 1, not {self.sharding.reserve}")
        for key, value in _values(self.model, "model."):
            if key.endswith(".dropout") and not 0 <= value < 1:
                raise UserError(f"{key}: a fraction from 0 to 1, not {value}")


POSITIVE = (
    *("embedding.dim", "embedding.lr", "embedding.init_scale", "dense.lr", "weighting.temperature", "weighting.lr"),
    *("training.batch_size", "training.max_epochs", "checkpoint.keep", "metrics.every_steps"),
    *("reader.streams", "reader.prefetch"),
)
"""Keys whose values must be greater than 0, beside the whole numbers of the model section; the others may be 0."""
LARGEST_FLOAT = 3e38
"""PyTorch keeps numbers in 32 bits, which hold no more."""
LARGEST, LARGEST_SIZE, LARGEST_SEED = 2**31 - 1, 2**16, 2**63 - 1
"""Of whole numbers: of counts, which PyTorch's kernels keep in 32 bits; of widths and numbers of layers, whose products
count weights; of the seed, which PyTorch's generators keep in 64 bits."""


def _check_number(key: str, number: float) -> None:
    """Check a number by its key.

    Raises:
        UserError: it is out of range; names the key.
    """
    if isinstance(number, float) and not abs(number) <= LARGEST_FLOAT:  # nor NaN
        raise UserError(f"{key}: must be a number up to {LARGEST_FLOAT:g}, not {number}")
    is_size = isinstance(number, int) and (key.startswith("model.") or key == "embedding.dim")
    is_positive = is_size or key in POSITIVE
    if number <= 0 if is_positive else number < 0:
        raise UserError(f"{key}: must {'be greater than 0' if is_positive else 'not be negative'}, not {number}")
    most = LARGEST_SIZE if is_size else LARGEST_SEED if key == "training.seed" else LARGEST
    if isinstance(number, int) and number > most:
        raise UserError(f"{key}: must be a whole number from {int(is_positive)} to {most}, not {number}")


def _values(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of a section and of the sections in it."""
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from _values(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value
