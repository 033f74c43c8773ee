"""A sharded model with its readers: what training and evaluation share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from recmtl.config import Config
from recmtl.data.read.batch import Batch
from recmtl.data.read.reader import Reader
from recmtl.distributed.context import DistContext
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
from recmtl.training.sharded import ShardedModel

DIVERGED = "lower dense.lr and embedding.lr"


@dataclass
class TrainSession(ShardedModel):
    """A sharded model with its readers: once its tables are filled, ready to run."""

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
        self.place(trained, self.tasks, batch_size, partial(self._make_module, trained), trains=not self.measure)
        # Until here all ranks drew the same weights; dropout must differ between them.
        torch.manual_seed(config.training.seed + context.rank)
        self._checked = False

    def _make_module(self, trained: Dataset) -> TrainModule:
        train_module = TrainModule.from_config(self.config, trained, self.tasks)
        for part in (*train_module.model.networks.values(), train_module.weighting):
            part.to(self.context.device)
        self.weighting = train_module.weighting
        return train_module

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
            threads=config.reader.threads,
        )

    def run_batch(self, batches: Iterator[Batch]) -> Output:
        """Run the next batch through the model; in training mode, update it."""
        output: Output = self.progress(batches)
        if not self._checked and isinstance(self._pipeline, TrainPipelineSparseDist):
            # Without, it would run, slower, with no overlap.
            if not has_pipelined_modules(self._pipeline):
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

    def _segments(self, split: str) -> dict[str, SegmentColumn]:
        """The columns of ``metrics.by``, a byte for each row of the split."""
        found: dict[str, SegmentColumn] = {}
        self.context.gather(lambda: found.update(read_segments(self.data, self.dataset, split, self.selection.by)))
        return found
