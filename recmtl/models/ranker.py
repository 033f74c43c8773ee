"""The module that is sharded and trained: embeddings, a model and the loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from recmtl.config import Config, WeightingConfig, find_model
from recmtl.data.batch import Batch
from recmtl.data.dataset import Dataset, Task
from recmtl.errors import UserError
from recmtl.models.base import Inputs, Model
from recmtl.models.embeddings import Embeddings
from recmtl.models.head import Head, Output


class Ranker(nn.Module):
    """Embeddings and head.

    The pipeline starts a batch's lookups early because `collection` reads `batch.sparse` itself.

    Args:
        dataset: tables, features.
        tasks: the tasks to train.
        model_config: the `model` section of the configuration.
        dim: embedding dimension of tables without one of their own.
        dtype: of the tables, float32 or float16.
        amp: bfloat16 autocast of the dense part.
        weighting: the `weighting` section of the configuration; none: the recipe's weights.
        micro_batch_size: rows that go through the dense part at a time; 0: all.

    Raises:
        UserError: the weighting has no embeddings to look at.
    """

    def __init__(
        self,
        dataset: Dataset,
        tasks: tuple[Task, ...],
        model_config: Any,
        *,
        dim: int,
        dtype: str = "float32",
        amp: bool = False,
        weighting: WeightingConfig | None = None,
        micro_batch_size: int = 0,
    ) -> None:
        super().__init__()
        if not dataset.sparse_features and weighting and weighting.method == "gradnorm":
            raise UserError(
                f"weighting.method: gradnorm balances gradients of embeddings, and all features of {dataset.name} are "
                "numeric; choose another method"
            )
        cls: type[Model] = find_model(model_config.name).load()
        self.embeddings = Embeddings(dataset, dim, cls.embedding_groups(model_config, tasks), dtype)
        inputs = Inputs(tasks, self.embeddings.width, self.embeddings.columns)
        self.head = Head(cls(model_config, inputs), amp, weighting or WeightingConfig(), micro_batch_size)

    @classmethod
    def of(cls, config: Config, dataset: Dataset, tasks: tuple[Task, ...]) -> Ranker:
        """The one that a run's configuration describes."""
        return cls(
            dataset,
            tasks,
            config.model,
            dim=config.embedding.dim,
            dtype=config.embedding.dtype,
            amp=config.training.amp == "bf16",
            weighting=config.weighting,
            micro_batch_size=config.training.micro_batch_size,
        )

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        """The loss to minimise (a scalar) and `Output`."""
        return self.head(self.embeddings(batch.sparse), batch)
