"""A sharded model with its readers and its pipeline: what training and evaluation share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from recmtl.config import Config
from recmtl.data.read.batch import Batch
from recmtl.data.read.reader import Reader
from recmtl.distributed.context import DistContext
from recmtl.distributed.oom import MemoryEstimate
from recmtl.distributed.parallel import parallelize
from recmtl.distributed.plan import Plan
from recmtl.encoding.generations import later_ids
from recmtl.errors import UserError
from recmtl.metrics.collect import Measured
from recmtl.metrics.names import LOSS
from recmtl.metrics.segments import SegmentColumn
from recmtl.objectives.train_module import Output, TrainModule
from recmtl.runtime.private_api import has_pipelined_modules
from recmtl.schema import SPLITS, Dataset, Task
from recmtl.training.evaluation import evaluate
from recmtl.training.segments import read_segments
from recmtl.training.selection import Selection

DIVERGED = "lower dense.lr and embedding.lr"


class PlainPipeline:
    """Steps of a model without embedding tables: there is no exchange of ids for TorchRec's pipeline to overlap.

    Args:
        model: what to run.
        optimizer: over all of it.
        device: where it is.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device) -> None:
        self._model, self._optimizer, self._device = model, optimizer, device

    def progress(self, batches: Iterator[Batch]) -> Output:
        """Run the next batch through the model; in training mode, update it."""
        batch = next(batches).to(self._device, non_blocking=True)
        if not self._model.training:
            return self._model(batch)[1]
        self._optimizer.zero_grad()
        loss, output = self._model(batch)
        loss.backward()
        self._optimizer.step()
        return output


def make_pipeline(
    model: nn.Module, optimizer: Optimizer, plan: Plan, device: torch.device
) -> TrainPipelineSparseDist | PlainPipeline:
    """What runs a sharded model on batches: `progress(batches)` takes the next one."""
    if plan.shards:
        return TrainPipelineSparseDist(model, optimizer, device, execute_all_batches=True)
    return PlainPipeline(model, optimizer, device)


@dataclass
class TrainSession:
    """A sharded model, ready to run."""

    config: Config
    data: Path
    dataset: Dataset
    tasks: tuple[Task, ...]
    context: DistContext
    measure: tuple[str, ...] = ()
    """The splits to measure; none: to train, validate and test."""
    trained: Dataset | None = None
    """What the model was trained on, where the data's encoding grew from that; None: on the data."""

    def __post_init__(self) -> None:
        config, context = self.config, self.context
        trained = self.trained or self.dataset
        self._later = later_ids(self.data, self.dataset, trained)
        self._read = replace(self.dataset, features=trained.features)
        self.selection = Selection.from_config(config.metrics, self.dataset, self.tasks, trains=not self.measure)
        # Readers come first: they find what is wrong with the data before anything is built or written.
        if self.measure:
            self.readers = {split: self._reader(split, evaluation=True) for split in self.measure}
        else:
            self.readers = {split: self._reader(split, split != "train") for split in SPLITS}
        batch_size = max(reader.local_batch_size for reader in self.readers.values())
        self.estimate = MemoryEstimate.for_ranks(config, trained, self.tasks, context, batch_size)
        self.plan: Plan = self.estimate.plan
        if not self.measure:  # measuring needs less than what is estimated
            self.estimate.check_surely()
        with self.explain_oom():
            torch.manual_seed(config.training.seed)
            train_module = TrainModule.from_config(config, trained, self.tasks)
            self.weighting = train_module.weighting
            self.model, self.optimizer = parallelize(train_module, self.plan, config, context.device)
        # Until here all ranks drew the same weights; dropout must differ between them.
        torch.manual_seed(config.training.seed + context.rank)
        self.pipeline = make_pipeline(self.model, self.optimizer, self.plan, context.device)
        self._checked = False

    def explain_oom(self) -> AbstractContextManager[None]:
        """Say what this rank needs when it runs out of memory.

        Raises:
            UserError: in place of the allocator's error.
        """
        return self.estimate.explain_oom(self.context.rank)

    def _reader(self, split: str, evaluation: bool) -> Reader:
        config, context = self.config, self.context
        return Reader(
            self.data,
            self._read,
            split,
            self.tasks,
            batch_size=config.training.batch_size,
            streams=config.reader.streams,
            rank=context.rank,
            world_size=context.world_size,
            seed=config.training.seed,
            shuffle=config.reader.shuffle and not evaluation,
            evaluation=evaluation,
            gather=context.gather,
            pin_memory=context.device.type == "cuda",
            later=self._later,
        )

    def run_batch(self, batches: Iterator[Batch]) -> Output:
        """Run the next batch through the model; in training mode, update it."""
        output: Output = self.pipeline.progress(batches)
        if not self._checked and isinstance(self.pipeline, TrainPipelineSparseDist):
            # Without, it would run, slower, with no overlap.
            if not has_pipelined_modules(self.pipeline):
                raise RuntimeError(
                    "no sharded module is pipelined: `Embeddings.collection` must be called on `batch.sparse` itself"
                )
            self._checked = True
        return output

    def evaluate(
        self, split: str, title: str, stop: Callable[[], bool] = lambda: False, *, by_segment: bool = False
    ) -> Measured:
        """Metrics and calibration bins of every task on a split, and metrics by the columns of ``metrics.by``.

        Raises:
            Stopped: `stop`, asked after every batch, said so.
            UserError: the model's outputs are no numbers, or a column of ``metrics.by`` cannot be read.
        """
        measured = evaluate(
            self.model,
            self.run_batch,
            self.readers[split],
            self.context,
            title=title,
            include=self.selection.include,
            segments=self._segments(split) if by_segment else {},
            prefetch=self.config.reader.prefetch,
            stop=stop,
        )
        for task in self.tasks:
            loss = measured.metrics[task.name][LOSS[task.kind]]
            if loss is not None and not math.isfinite(loss):
                kind = "log loss" if task.kind == "binary" else f"loss of {task.name}"
                raise UserError(f"the {kind} on the {split} split is {loss}; {DIVERGED}")
        return measured

    def _segments(self, split: str) -> dict[str, SegmentColumn | None]:
        """The columns of ``metrics.by`` on the first rank, their names on the others."""
        found: dict[str, SegmentColumn | None] = dict.fromkeys(self.selection.by)
        self.context.run_on_rank0(lambda: found.update(read_segments(self.data, self.dataset, split, found)))
        return found
