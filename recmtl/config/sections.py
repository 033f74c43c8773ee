"""A run's configuration: one dataclass a section. Every field has its limits, a default, a unit and a line of help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro
from annotated_types import Interval, MultipleOf

from recmtl.config.interaction import InteractionConfig
from recmtl.config.sequence import SequenceConfig
from recmtl.typed import LARGEST_FLOAT, Count, Fraction, NonNegative, Positive, PositiveCount, Seed, Shares, Size, Texts

ShardingType = Literal["auto", "table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard", "data_parallel"]


@dataclass
class EmbeddingConfig:
    """Embedding tables and their optimiser, which runs inside backward."""

    dim: Annotated[Size, MultipleOf(4)] = 16
    """Embedding dimension of every table that the recipe gives none; a multiple of 4."""
    dtype: Literal["float32", "float16"] = "float32"
    """Numbers of the tables; float16 halves them. Updates round at random on GPUs, to the nearest on CPUs."""
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam", "rowwise_adam"] = "rowwise_adagrad"
    """Sparse optimiser fused into backward; adam and rowwise_adam need CUDA."""
    lr: Positive = 0.05
    """Learning rate of the sparse optimiser."""
    eps: NonNegative = 1e-8
    """Added to the root of the accumulator (Adagrad and Adam)."""
    init_scale: Positive = 1.0
    """Rows start uniform in ±init_scale/√rows."""
    reinitialize: bool = False
    """Draw all tables anew, their optimiser's states 0, at the start of every epoch but the first, while the dense part
    goes on (MEDA, arXiv 2305.19531). Not with adam and rowwise_adam."""
    dropout: Fraction = 0.0
    """Probability of dropping a number of a pooled embedding or an encoded history in training; the others are divided
    by 1 − dropout."""
    weight_decay: NonNegative = 0.0
    """L2 penalty λ of what is looked up: the loss gains λ/2 Σ e² over the pooled embeddings and encoded histories of a
    row, averaged over the rows of the batch. FBGEMM's own weight decay does nothing on CPUs."""
    new_rows: Literal["drawn", "unseen"] = "drawn"
    """Where rows of new values start in a run that starts from another one: drawn as in any run, or at the row that
    unseen values have learned."""
    placement: Literal["auto", "data_parallel", "sharded"] = "auto"
    """Which tables every rank of several holds whole: auto those whose gradients are fewer bytes than what looking them
    up exchanges, data_parallel all tables of tasks' own (stem, me_*) as well, sharded none. Same losses."""
    replica_mib: NonNegative = 64.0
    """Memory of each rank that auto may fill with replicas, their gradients and optimiser states, in MiB."""
    replica_gain_mib: NonNegative = 4.0
    """What each rank must send less a step for auto to replicate any table, in MiB; with fewer the exchange that
    replicas need themselves takes longer."""


@dataclass
class DenseConfig:
    """Optimiser of the dense part (experts, gates, towers)."""

    optimizer: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    """Dense optimiser."""
    lr: Positive = 1e-3
    """Learning rate of the dense optimiser."""
    weight_decay: NonNegative = 0.0
    """L2 penalty (decoupled for adamw)."""


@dataclass
class WeightingConfig:
    """How the losses of several tasks become one; the recipe's weights multiply whatever the method gives."""

    method: Literal["fixed", "uncertainty", "dwa", "gradnorm", "pcgrad", "multibalance"] = "fixed"
    """fixed: the recipe's weights alone; the others change weights (pcgrad: gradients) as training goes on."""
    temperature: Positive = 2.0
    """Temperature τ of dwa's softmax: the higher, the more alike the weights."""
    alpha: NonNegative = 1.5
    """Exponent α of gradnorm: how strongly slower tasks are favoured; 0: gradients of one size."""
    lr: Positive = 0.025
    """Learning rate, with Adam, of what uncertainty and gradnorm learn."""
    decay: Fraction = 0.9
    """Decay β of multibalance's moving averages of the sizes of gradients; 0: of the step alone."""
    pull: Annotated[float, Interval(ge=1e-4, le=LARGEST_FLOAT)] = 0.1
    """Pull ρ of multibalance's shares towards equal ones: large, it evens out sizes alone and lets tasks conflict."""


@dataclass
class TrainingConfig:
    """The loop: how long, on what, in which order."""

    batch_size: PositiveCount = 4096
    """Rows in a global batch, over all ranks."""
    micro_batch_size: Count = 0
    """Rows of a rank's batch that go through the dense part at a time, for less memory; 0: all. Their gradients add
    up: the step stays the same. Histories are encoded by so many rows at a time, and once more on the way back."""
    max_epochs: PositiveCount = 20
    """Passes over the training split, at most."""
    max_steps: Count = 0
    """Stop after this many steps in all; 0: no limit."""
    validate_every_steps: Count = 0
    """Validate after every so many steps too, not only at the end of an epoch; 0: don't. The best model is sought, and
    patience counts, among all of these."""
    patience: Count = 1
    """Validations in a row (epochs, without `validate_every_steps`) without a better loss (the sum over tasks by the
    recipe's weights), or a better value of `metrics.monitor`, before training stops; 0: never stop early."""
    seed: Seed = 100
    """Seed of the initial weights and of the order of rows."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--tasks",))] = ()
    """Tasks to train, by name; none: all of the recipe's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes CUDA where there is a GPU."""
    amp: Literal["none", "tf32", "bf16"] = "none"
    """Precision of the dense part's products: bf16 is autocast; tf32 keeps ten bits of float32's mantissa on GPUs, and
    all of them on CPUs."""
    clip_norm: NonNegative = 0.0
    """Largest gradient norm of the dense part; 0: no clipping."""
    warmup_steps: Count = 0
    """Steps over which both learning rates rise linearly from 0; 0: none."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Both learning rates after the warm-up: constant, or falling to 0 along a line or half a cosine."""
    schedule_steps: Count = 0
    """Steps after which rates that fall are 0, the warm-up among them; 0: those of `max_epochs`, or `max_steps` where
    they are fewer."""


@dataclass
class CheckpointConfig:
    """Checkpoints: a folder a step under the run's checkpoints/, complete or absent."""

    every_steps: Count = 0
    """Also write one every so many steps; 0: at the end of an epoch only."""
    keep: PositiveCount = 2
    """How many of the newest to keep; the best model's is always kept."""
    background: bool = True
    """Write while training goes on, from a copy in the host's memory; False: training waits, on CPUs without a copy."""
    resume: bool = True
    """Go on from the newest checkpoint where the run folder has one."""


@dataclass
class MetricsConfig:
    """What is logged and measured."""

    every_steps: PositiveCount = 50
    """Steps between two lines of metrics.jsonl."""
    include: Texts = ()
    """Metrics to measure, by name, beside the losses: auc, gauc, oracle_auc, ne, calibration; mae, rmse, r2, xauc, bias
    of tasks whose labels are numbers. None: all."""
    by: Texts = ()
    """Categorical features, or segments of the recipe: metrics of the test rows are also measured for each value."""
    monitor: Shares = field(default_factory=dict)
    """What early stopping and the best epoch look at: TASK.METRIC on the validation rows, such as like.gauc, or a sum
    of several, each with its weight. None: the losses, summed by the recipe's weights."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""


@dataclass
class ShardingConfig:
    """How the planner places tables on devices."""

    type: ShardingType = "auto"
    """Sharding of every table; auto leaves it to TorchRec's planner."""
    tables: dict[str, ShardingType] = field(default_factory=dict)
    """Sharding of single tables, by name, before `type`."""
    device_memory_gib: NonNegative = 0.0
    """Memory of one device in GiB; 0: what the device says it has."""
    reserve: Fraction = 0.15
    """Fraction of the device memory the planner leaves free for activations and the dense part."""


@dataclass
class ReaderConfig:
    """How rows are read."""

    streams: PositiveCount = 64
    """Row ranges read side by side, dealt out over ranks: at least the number of ranks, and at most so many files are
    open. Part of the row order."""
    threads: PositiveCount = 1
    """Threads of each rank that decode rows and put them in their order."""
    prefetch: PositiveCount = 4
    """Batches that a background thread decodes ahead of the step."""
    shuffle: bool = True
    """Visit the training rows in another order every epoch."""


@dataclass
class Config:
    """A run. `model` holds the model's own sizes: its class is the one that the registry names."""

    model: Any
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    interaction: InteractionConfig = field(default_factory=InteractionConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    reader: ReaderConfig = field(default_factory=ReaderConfig)
