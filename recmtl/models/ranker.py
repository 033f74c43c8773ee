"""The module that is sharded and trained: embeddings, a model and the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.config import Config, WeightingConfig
from recmtl.data.batch import Batch
from recmtl.data.dataset import Dataset, Task
from recmtl.losses import task_losses
from recmtl.models import Inputs, Model, model_class
from recmtl.models.embeddings import Embeddings
from recmtl.weighting import make_weighting

Output = tuple[Tensor, Tensor, Batch]
"""(loss of every task [T], logits [B, T], the batch they belong to), all without gradient."""


class Head(nn.Module):
    """The dense part: a model on pooled embeddings, and its loss.

    Args:
        model: from x of every embedding group to logits.
        amp: run the model under bfloat16 autocast; logits and loss stay float32.
        weighting: the `weighting` section of the configuration.
    """

    def __init__(self, model: Model, amp: bool, weighting: WeightingConfig) -> None:
        super().__init__()
        self.model, self.amp = model, amp
        self.weighting = make_weighting(weighting, torch.tensor([task.weight for task in model.inputs.tasks]))

    def forward(self, pooled: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Output]:
        """The loss to minimise (a scalar) and `Output`."""
        x = pooled
        if batch.numeric.shape[1]:
            x = {group: torch.cat([values, batch.numeric], dim=1) for group, values in pooled.items()}
        padding = len(batch.weights) - batch.rows
        if padding:  # it must not enter the statistics of batch normalisation
            x = {group: values[: batch.rows] for group, values in x.items()}
        with torch.autocast(batch.labels.device.type, dtype=torch.bfloat16, enabled=self.amp):
            logits = self.model(x)
        logits = F.pad(logits.float(), (0, 0, 0, padding))
        losses = task_losses(logits, batch.labels, batch.weights)
        loss = self.weighting(losses, list(pooled.values()), list(self.model.parameters()))
        auxiliary = self.model.auxiliary_loss(logits, batch.weights)
        if auxiliary is not None:
            loss = loss + auxiliary
        return loss, (losses.detach(), logits.detach(), batch)


class Ranker(nn.Module):
    """Embeddings and head.

    The pipeline starts a batch's lookups early because `collection` reads `batch.sparse` itself.

    Args:
        dataset: tables, features.
        tasks: the tasks to train.
        model_config: the `model` section of the configuration.
        dim: embedding dimension of tables without one of their own.
        layout: how tables of tasks' own lie beside the shared ones; see `Embeddings`.
        dtype: of the tables, float32 or float16.
        amp: bfloat16 autocast of the dense part.
        weighting: the `weighting` section of the configuration; none: the recipe's weights.
    """

    def __init__(
        self,
        dataset: Dataset,
        tasks: tuple[Task, ...],
        model_config: Any,
        *,
        dim: int,
        layout: str = "separate",
        dtype: str = "float32",
        amp: bool = False,
        weighting: WeightingConfig | None = None,
    ) -> None:
        super().__init__()
        cls = model_class(model_config.name)
        self.embeddings = Embeddings(dataset, dim, cls.embedding_groups(model_config, tasks), layout, dtype)
        inputs = Inputs(tasks, self.embeddings.width, self.embeddings.columns)
        self.head = Head(cls(model_config, inputs), amp, weighting or WeightingConfig())

    @classmethod
    def of(cls, config: Config, dataset: Dataset, tasks: tuple[Task, ...]) -> Ranker:
        """The one that a run's configuration describes."""
        return cls(
            dataset,
            tasks,
            config.model,
            dim=config.embedding.dim,
            layout=config.embedding.layout,
            dtype=config.embedding.dtype,
            amp=config.training.amp == "bf16",
            weighting=config.weighting,
        )

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        """The loss to minimise (a scalar) and `Output`."""
        return self.head(self.embeddings(batch.sparse), batch)
