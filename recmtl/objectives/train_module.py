"""What is trained: a ranking model, and the loss of its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from recmtl.config import Config, WeightingConfig
from recmtl.data.read.batch import Batch
from recmtl.errors import UserError
from recmtl.models.batch_norm import BatchNorm
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.losses import auxiliary_loss, task_losses
from recmtl.objectives.weighting import make_weighting
from recmtl.objectives.weighting.base import GivenGradients
from recmtl.schema import Dataset, Task

Output = tuple[Tensor, Tensor, Batch]
"""(loss of every task [T], logits [B, T], the batch they belong to), all without gradient."""

NORMALISING = (BatchNorm, nn.BatchNorm1d)
"""Layers that need all rows of a batch at once."""


class TrainModule(nn.Module):
    """A ranking model with labels, row weights, the tasks' losses and their weighting.

    With `micro_batch_size`, so many rows at a time go through the dense network, forward and back, and their gradients
    add up. The step is the same (dropout draws other masks), but the activations of one micro-batch only are there at
    once. Embeddings are looked up and updated for the whole batch.

    Args:
        model: from ids and numbers to logits.
        weighting: the `weighting` section of the configuration; none: the recipe's weights.
        micro_batch_size: rows of a micro-batch; 0: the whole batch.

    Raises:
        UserError: no task has a weight, the weighting needs embedding tables and there are none, or the model or the
            weighting needs the whole batch at once.
    """

    def __init__(
        self, model: RankingModel, weighting: WeightingConfig | None = None, micro_batch_size: int = 0
    ) -> None:
        super().__init__()
        self.model, self.micro_batch_size = model, micro_batch_size
        weighting = weighting or WeightingConfig()
        tasks = model.dense.inputs.tasks
        if not any(task.weight for task in tasks):
            names = ", ".join(task.name for task in tasks)
            raise UserError(
                f"training.tasks: the recipe gives weight 0 to all tasks to train ({names}); give one of them a weight "
                "there, or train others"
            )
        if weighting.method == "gradnorm" and not model.embeddings.tables:
            raise UserError(
                "weighting.method: gradnorm balances gradients of embeddings, and all features are numeric; choose "
                "another method"
            )
        self.weighting = make_weighting(weighting, torch.tensor([task.weight for task in tasks]))
        if micro_batch_size and not self.weighting.known_ahead:
            raise UserError(
                f"training.micro_batch_size: 0 with weighting.method {weighting.method}, not {micro_batch_size}"
            )
        if micro_batch_size and any(isinstance(module, NORMALISING) for module in model.dense.modules()):
            raise UserError(
                f"training.micro_batch_size: 0 with model.name {model.dense.config.name}, which normalises over the "
                f"batch, not {micro_batch_size}"
            )

    @classmethod
    def from_config(cls, config: Config, dataset: Dataset, tasks: tuple[Task, ...]) -> TrainModule:
        """What a run's configuration describes, its tables on the meta device."""
        model = RankingModel.from_config(config, dataset, tasks)
        return cls(model, config.weighting, config.training.micro_batch_size)

    def dense_parameters(self) -> list[nn.Parameter]:
        """Those of the dense network and of the weighting: all but the tables."""
        return [*self.model.dense.parameters(), *self.weighting.parameters()]

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        """The loss to minimise (a scalar) and `Output`."""
        pooled = self.model.embed(batch.sparse)
        if isinstance(pooled, Proxy):
            # TorchRec's pipeline traces this function, only to find which part of a batch is looked up.
            return pooled
        return self.loss(pooled, batch)

    def loss(self, pooled: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Output]:
        """As `forward`, from the pooled embeddings of the batch."""
        rows = self._micro_batches(batch)
        if len(rows) > 1 and torch.is_grad_enabled():
            return self._accumulate(pooled, batch, rows)
        parts = [
            self.model.score({name: _rows(values, some) for name, values in pooled.items()}, _rows(batch.numeric, some))
            for some in rows
        ]
        # Padding was left out: it must not enter the statistics of batch normalisation.
        logits = F.pad(torch.cat(parts), (0, 0, 0, len(batch.weights) - batch.rows))
        losses, auxiliary = self._losses(logits, batch.labels, batch.weights)
        loss = self.weighting(losses, list(pooled.values()), list(self.model.dense.parameters()))
        return loss + auxiliary, (losses.detach(), logits.detach(), batch)

    def _accumulate(
        self, pooled: dict[str, Tensor], batch: Batch, micro_batches: Sequence[slice]
    ) -> tuple[Tensor, Output]:
        """As `loss`, with the gradients made on the way."""
        self.weighting.begin_step()
        weights = self.weighting.weights()
        # Leaves of their own: a gradient that reached the parameters would start DDP's all-reduce before the last one.
        parameters = {name: p.detach().requires_grad_() for name, p in self.model.dense.named_parameters()}
        gradients = {name: torch.zeros_like(values) for name, values in pooled.items()}
        logits = torch.zeros_like(batch.labels)
        losses, auxiliary = torch.zeros_like(weights), torch.zeros_like(weights[0])
        for rows in micro_batches:
            x = {name: values[rows].detach().requires_grad_() for name, values in pooled.items()}
            mine = self.model.score(x, batch.numeric[rows], parameters)
            of_tasks, of_model = self._losses(mine, batch.labels[rows], batch.weights[rows])
            ((weights * of_tasks).sum() + of_model).backward()
            for name, values in x.items():
                if values.grad is not None:
                    gradients[name][rows] = values.grad
            logits[rows] = mine.detach()
            losses += of_tasks.detach()
            auxiliary += of_model.detach()
        made = [*gradients.values(), *(p.grad for p in parameters.values())]
        loss = self.weighting.combine(losses, [], []) + auxiliary
        loss = GivenGradients.apply(loss, made, *pooled.values(), *self.model.dense.parameters())
        return loss, (losses, logits, batch)

    def _micro_batches(self, batch: Batch) -> list[slice]:
        """The real rows, one micro-batch after the other; one that is empty where there are none."""
        size = self.micro_batch_size or max(batch.rows, 1)
        return [slice(start, min(start + size, batch.rows)) for start in range(0, max(batch.rows, 1), size)]

    def _losses(self, logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of every task [T], and what the model's paper adds to their weighted sum."""
        auxiliary = auxiliary_loss(self.model.dense, logits, weights)
        return task_losses(logits, labels, weights), logits.new_zeros(()) if auxiliary is None else auxiliary


def _rows(values: Tensor, rows: slice) -> Tensor:
    """Some rows; where they are all, without a slice, whose gradient would be copied."""
    return values if rows == slice(0, len(values)) else values[rows]
