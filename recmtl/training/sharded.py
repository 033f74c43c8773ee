"""A model on the ranks that are there: what training, measuring and scoring share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from recmtl.config import Config
from recmtl.data.read.batch import Batch
from recmtl.distributed.context import DistContext
from recmtl.distributed.oom import MemoryEstimate
from recmtl.distributed.parallel import initialize_tables, parallelize, shard
from recmtl.distributed.plan import Plan
from recmtl.models.embeddings import table_of
from recmtl.objectives.train_module import TrainModule
from recmtl.runtime.private_api import ShardedTensor
from recmtl.schema import Dataset, Task


class PlainPipeline:
    """Steps of a model without embedding tables: there is no exchange of ids for TorchRec's pipeline to overlap.

    Args:
        model: what to run.
        optimizer: over all of it.
        device: where it is.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device) -> None:
        self._model, self._optimizer, self._device = model, optimizer, device

    def progress(self, batches: Iterator[Batch]) -> Any:
        """Run the next batch through the model; in training mode, update it."""
        batch = next(batches).to(self._device, non_blocking=True)
        if not self._model.training:
            return self._model(batch)[1]
        self._optimizer.zero_grad()
        loss, output = self._model(batch)
        loss.backward()
        self._optimizer.step()
        return output


class ShardedModel:
    """A model whose tables lie where a plan puts them.

    Tables get memory and no values: drawing the values of rows that a checkpoint overwrites would take most of a start.
    So they cannot be used before `draw_tables` or `Checkpoints` has filled every row.
    """

    config: Config
    context: DistContext
    estimate: MemoryEstimate
    plan: Plan
    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    """Over everything; of a model that does not train, TorchRec's of its tables, which has no state."""
    filled: bool = False
    """Whether all rows of all tables have values."""

    def place(
        self, dataset: Dataset, tasks: tuple[Task, ...], batch_size: int, make: Callable[[], nn.Module], *, trains: bool
    ) -> None:
        """Plan the tables, shard them, and make what runs the model on batches.

        Args:
            dataset: what the model is, or was, trained on.
            tasks: those of the model.
            batch_size: rows in one rank's batch.
            make: makes the module to shard: its tables on the meta device, all else on this rank's. To train it must be
                a `TrainModule`.
            trains: build optimisers, and refuse what surely does not fit. Measuring needs less than what is estimated.

        Raises:
            UserError: the tables do not fit, or there is no such optimiser on this device.
        """
        config, context = self.config, self.context
        self.estimate = MemoryEstimate.for_ranks(config, dataset, tasks, context, batch_size)
        self.plan = self.estimate.plan
        if trains:
            self.estimate.check_surely()
        if context.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if config.training.amp == "tf32" else "highest")
        with self.explain_oom():
            torch.manual_seed(config.training.seed)
            module = make()
            if trains:
                assert isinstance(module, TrainModule)
                self.model, self.optimizer = parallelize(module, self.plan, config, context.device)
            else:
                self.model = shard(module, self.plan, context.device)
                self.optimizer = self.model.fused_optimizer
        if self.plan.shards:
            self._pipeline: Any = TrainPipelineSparseDist(
                self.model, self.optimizer, context.device, execute_all_batches=True
            )
        else:
            self._pipeline = PlainPipeline(self.model, self.optimizer, context.device)

    def draw_tables(self, stored: Mapping[str, int] | None = None, epoch: int = 0) -> None:
        """Give rows of tables their initial values.

        Args:
            stored: by table, how many of its first rows have values already; None: no row has.
            epoch: that begins with them: every epoch has values of its own.
        """
        config = self.config
        dtype = getattr(torch, config.embedding.dtype)
        seed = config.training.seed + epoch * 2**63  # those of the first epochs of all runs are below
        initialize_tables(self.model, seed, config.embedding.init_scale, dtype, stored or {})
        self.filled = True

    @torch.no_grad()
    def renew_tables(self, epoch: int) -> None:
        """Begin an epoch with tables that have learned nothing: values of the epoch's own, optimiser's states 0."""
        self.draw_tables(epoch=epoch)
        for key, states in self.optimizer.state_dict()["state"].items():
            if table_of(key):
                for state in states.values():
                    sharded = isinstance(state, ShardedTensor)
                    for piece in [shard.tensor for shard in state.local_shards()] if sharded else [state]:
                        piece.zero_()

    def progress(self, batches: Iterator[Batch]) -> Any:
        """Run the next batch through the model; in training mode, update it.

        Raises:
            RuntimeError: the tables hold nothing.
        """
        if not self.filled:
            raise RuntimeError("the tables hold nothing: draw them or load a checkpoint before the first batch")
        return self._pipeline.progress(batches)

    def explain_oom(self) -> AbstractContextManager[None]:
        """Say what this rank needs when it runs out of memory.

        Raises:
            UserError: in place of the allocator's error.
        """
        return self.estimate.explain_oom(self.context.rank)
