"""The interchangeable parts of a trainer for benchmarks/reference.py: tables, loader and metrics, each in two kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from plain import PlainTrainer, row_loader
from torch import Tensor
from torchmetrics.classification import BinaryAUROC
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recmtl.config import Config
from recmtl.data.read.batch import Batch
from recmtl.data.read.prefetcher import Prefetcher
from recmtl.data.read.reader import Reader
from recmtl.distributed.context import DistContext
from recmtl.metrics.collect import Metrics
from recmtl.objectives.train_module import Output
from recmtl.schema import Dataset, Task
from recmtl.training.session import TrainSession

AnyBatch = Batch | list[Tensor]
"""What recmtl's reader gives, or ids [B, C] and labels [B, T] of a DataLoader. Both trainers take both."""


class Tables(Protocol):
    """A model and its optimisers."""

    def train(self, batches: Iterator[AnyBatch]) -> None:
        """A step on every batch."""

    def predict(self, batches: Iterator[AnyBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and labels [B, T] of every batch."""


class PlainTables:
    """One nn.Embedding a column, dense Adam."""

    def __init__(self, config: Config, data: Path, dataset: Dataset, context: DistContext) -> None:
        torch.manual_seed(config.training.seed)
        size, lr = config.embedding.dim, config.dense.lr
        self.trainer = PlainTrainer(dataset, config.model, dim=size, lr=lr, device=context.device)

    def train(self, batches: Iterator[AnyBatch]) -> None:
        """A step on every batch."""
        for batch in batches:
            self.trainer.step(*_rows(batch))

    def predict(self, batches: Iterator[AnyBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and labels [B, T] of every batch."""
        for batch in batches:
            ids, labels = _rows(batch)
            logits = self.trainer.predict(ids)
            yield logits, labels.to(logits.device)


class RecmtlTables:
    """The engine of recmtl."""

    def __init__(self, config: Config, data: Path, dataset: Dataset, context: DistContext) -> None:
        self.session = TrainSession(config, data, dataset, dataset.tasks, context)
        self.session.draw_tables()
        self.keys = self.session.readers["train"].data.keys

    def train(self, batches: Iterator[AnyBatch]) -> None:
        """A step on every batch."""
        for _ in self._run(batches):
            pass

    @torch.no_grad()
    def predict(self, batches: Iterator[AnyBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and labels [B, T] of every batch."""
        self.session.model.eval()
        for _, _, logits, batch in self._run(batches):
            yield logits[: batch.rows], batch.labels[: batch.rows]
        self.session.model.train()

    def _run(self, batches: Iterator[AnyBatch]) -> Iterator[Output]:
        feed = (batch if isinstance(batch, Batch) else self._batch(*batch) for batch in batches)
        while True:
            try:
                output = self.session.run_batch(feed)
            except StopIteration:
                return
            yield output

    def _batch(self, ids: Tensor, labels: Tensor) -> Batch:
        rows = len(ids)
        lengths = torch.ones(ids.numel(), dtype=torch.int32)
        sparse = KeyedJaggedTensor(self.keys, ids.t().reshape(-1).int(), lengths=lengths)
        return Batch(sparse, torch.empty(rows, 0), labels, torch.full((rows,), 1 / rows), rows)


def _rows(batch: AnyBatch) -> list[Tensor]:
    if not isinstance(batch, Batch):
        return batch
    ids = batch.sparse.values().view(len(batch.sparse.keys()), -1).t().long()
    return [ids[: batch.rows], batch.labels[: batch.rows]]


Epoch = Callable[[int], Iterator[AnyBatch]]
"""The batches of an epoch, by its number."""


def plain_loader(config: Config, data: Path, dataset: Dataset, split: str) -> Epoch:
    """A DataLoader over rows in memory."""
    loader = row_loader(data, dataset, split, config.training.batch_size)
    return lambda epoch: iter(loader)


def recmtl_loader(config: Config, data: Path, dataset: Dataset, split: str) -> Epoch:
    """The reader of recmtl, a background thread ahead of the step."""
    reader = Reader(
        data,
        dataset,
        split,
        dataset.tasks,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        shuffle=split == "train",
        pin_memory=torch.cuda.is_available(),
    )

    def epoch(number: int) -> Iterator[AnyBatch]:
        with Prefetcher(reader.batches(number), config.reader.prefetch) as batches:
            yield from batches

    return epoch


Predictions = Iterable[tuple[Tensor, Tensor]]
"""Logits and labels [B, T] of every batch."""


def plain_metrics(predictions: Predictions, tasks: list[str], context: DistContext) -> dict[str, float]:
    """The AUC of every task by torchmetrics."""
    aucs = [BinaryAUROC() for _ in tasks]
    for logits, labels in predictions:
        for task, auc in enumerate(aucs):
            auc.update(logits[:, task].cpu(), labels[:, task].cpu().long())
    return {task: auc.compute().item() for task, auc in zip(tasks, aucs, strict=True)}


def recmtl_metrics(predictions: Predictions, tasks: list[str], context: DistContext) -> dict[str, float]:
    """The AUC of every task by recmtl, which measures more than that."""
    metrics = Metrics([Task(task) for task in tasks], context, include=("auc", "ne", "calibration"))
    for logits, labels in predictions:
        metrics.update(logits, labels, len(labels))
    return {task: float(values["auc"] or 0) for task, values in metrics.compute().metrics.items()}


TABLES: dict[str, Callable[[Config, Path, Dataset, DistContext], Tables]] = {
    "plain": PlainTables,
    "recmtl": RecmtlTables,
}
LOADERS = {"plain": plain_loader, "recmtl": recmtl_loader}
METRICS = {"plain": plain_metrics, "recmtl": recmtl_metrics}
