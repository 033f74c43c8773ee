"""The dense part of what is trained: a model on pooled embeddings, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from recmtl.config import WeightingConfig
from recmtl.data.batch import Batch
from recmtl.errors import UserError
from recmtl.losses import task_losses
from recmtl.models.base import Model
from recmtl.models.batch_norm import BatchNorm
from recmtl.weighting import make_weighting
from recmtl.weighting.base import GivenGradients

Output = tuple[Tensor, Tensor, Batch]
"""(loss of every task [T], logits [B, T], the batch they belong to), all without gradient."""

NORMALISING = (BatchNorm, nn.BatchNorm1d)
"""Layers that need all rows of a batch at once."""


class Head(nn.Module):
    """A model on pooled embeddings, and its loss.

    With `micro_batch_size`, so many rows at a time go through the model, forward and back, and their gradients add up.
    The step is the same (dropout draws other masks), but the activations of one micro-batch only are there at once.
    Embeddings are looked up and updated for the whole batch.

    Args:
        model: from x of every embedding group to logits.
        amp: run the model under bfloat16 autocast; logits and loss stay float32.
        weighting: the `weighting` section of the configuration.
        micro_batch_size: rows of a micro-batch; 0: the whole batch.

    Raises:
        UserError: no task has a weight, or the model or the weighting needs the whole batch at once.
    """

    def __init__(self, model: Model, amp: bool, weighting: WeightingConfig, micro_batch_size: int = 0) -> None:
        super().__init__()
        self.model, self.amp, self.micro_batch_size = model, amp, micro_batch_size
        tasks = model.inputs.tasks
        if not any(task.weight for task in tasks):
            names = ", ".join(task.name for task in tasks)
            raise UserError(
                f"training.tasks: the recipe gives weight 0 to all tasks to train ({names}); give one of them a weight "
                "there, or train others"
            )
        self.weighting = make_weighting(weighting, torch.tensor([task.weight for task in tasks]))
        if micro_batch_size and not self.weighting.known_ahead:
            raise UserError(
                f"training.micro_batch_size: 0 with weighting.method {weighting.method}, not {micro_batch_size}"
            )
        if micro_batch_size and any(isinstance(module, NORMALISING) for module in model.modules()):
            raise UserError(
                f"training.micro_batch_size: 0 with model.name {model.config.name}, which normalises over the batch, "
                f"not {micro_batch_size}"
            )

    def forward(self, pooled: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Output]:
        """The loss to minimise (a scalar) and `Output`."""
        rows = self._micro_batches(batch)
        if len(rows) > 1 and torch.is_grad_enabled():
            return self._accumulate(pooled, batch, rows)
        parts = []
        for some in rows:
            x = {group: _rows(values, some) for group, values in pooled.items()}
            parts.append(self._logits(self.model, x, _rows(batch.numeric, some)))
        # Padding was left out: it must not enter the statistics of batch normalisation.
        logits = F.pad(torch.cat(parts), (0, 0, 0, len(batch.weights) - batch.rows))
        losses, auxiliary = self._losses(logits, batch.labels, batch.weights)
        loss = self.weighting(losses, list(pooled.values()), list(self.model.parameters()))
        return loss + auxiliary, (losses.detach(), logits.detach(), batch)

    def _accumulate(
        self, pooled: dict[str, Tensor], batch: Batch, micro_batches: Sequence[slice]
    ) -> tuple[Tensor, Output]:
        """As `forward`, with the gradients made on the way."""
        self.weighting.begin_step()
        weights = self.weighting.weights()
        # Leaves of their own: a gradient that reached the parameters would start DDP's all-reduce before the last one.
        parameters = {name: p.detach().requires_grad_() for name, p in self.model.named_parameters()}
        model = partial(functional_call, self.model, parameters)
        gradients = {group: torch.zeros_like(values) for group, values in pooled.items()}
        logits = torch.zeros_like(batch.labels)
        losses, auxiliary = torch.zeros_like(weights), torch.zeros_like(weights[0])
        for rows in micro_batches:
            x = {group: values[rows].detach().requires_grad_() for group, values in pooled.items()}
            mine = self._logits(model, x, batch.numeric[rows])
            of_tasks, of_model = self._losses(mine, batch.labels[rows], batch.weights[rows])
            ((weights * of_tasks).sum() + of_model).backward()
            for group, values in x.items():
                if values.grad is not None:
                    gradients[group][rows] = values.grad
            logits[rows] = mine.detach()
            losses += of_tasks.detach()
            auxiliary += of_model.detach()
        made = [*gradients.values(), *(p.grad for p in parameters.values())]
        loss = self.weighting.combine(losses, [], []) + auxiliary
        loss = GivenGradients.apply(loss, made, *pooled.values(), *self.model.parameters())
        return loss, (losses, logits, batch)

    def _micro_batches(self, batch: Batch) -> list[slice]:
        """The real rows, one micro-batch after the other; one that is empty where there are none."""
        size = self.micro_batch_size or max(batch.rows, 1)
        return [slice(start, min(start + size, batch.rows)) for start in range(0, max(batch.rows, 1), size)]

    def _logits(self, model: Callable[[dict[str, Tensor]], Tensor], x: dict[str, Tensor], numeric: Tensor) -> Tensor:
        """Logits of rows, by the model or one with other parameters, from their pooled embeddings."""
        if numeric.shape[1]:
            x = {group: torch.cat([values, numeric], dim=1) for group, values in x.items()}
        with torch.autocast(numeric.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return model(x).float()

    def _losses(self, logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of every task [T], and what the model adds to their weighted sum."""
        auxiliary = self.model.auxiliary_loss(logits, weights)
        return task_losses(logits, labels, weights), logits.new_zeros(()) if auxiliary is None else auxiliary


def _rows(values: Tensor, rows: slice) -> Tensor:
    """Some rows; where they are all, without a slice, whose gradient would be copied."""
    return values if rows == slice(0, len(values)) else values[rows]
