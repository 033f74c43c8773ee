"""What is trained: a ranking model, and the loss of its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from recmtl.config import Config, WeightingConfig
from recmtl.data.read.batch import Batch
from recmtl.errors import UserError
from recmtl.models.batch_norm import BatchNorm
from recmtl.models.ranking_model import RankingModel
from recmtl.objectives.losses import auxiliary_loss, learned_labels, learned_logits, task_losses
from recmtl.objectives.weighting import make_weighting
from recmtl.objectives.weighting.base import GivenGradients
from recmtl.runtime.collectives import sum_over_ranks, world_size
from recmtl.schema import Dataset, Task


class Output(NamedTuple):
    """What a step gives, without gradients."""

    losses: Tensor
    """Loss of every task on this rank [T]; their mean over ranks is that of the global batch."""
    observed: Tensor
    """Whether a row of the global batch has a label of the task, 1 or 0 [T]."""
    logits: Tensor
    """[B, T]."""
    batch: Batch
    """What they belong to."""


NORMALISING = (BatchNorm, nn.BatchNorm1d)
"""Layers that need all rows of a batch at once."""


def normalising(model: RankingModel) -> str | None:
    """The setting that puts batch normalisation into a model; None: there is none."""
    if not any(isinstance(module, NORMALISING) for module in model.dense.modules()):
        return None
    layers = model.dense.input_layers
    of_input = layers is not None and any(isinstance(module, NORMALISING) for module in layers.modules())
    return "interaction.normalization batch" if of_input else f"model.name {model.dense.config.name}"


class TrainModule(nn.Module):
    """A ranking model with labels, row weights, the tasks' losses and their weighting.

    With `micro_batch_size`, so many rows at a time go through the dense network, forward and back, and their gradients
    add up. The step is the same (dropout draws other masks), but the activations of one micro-batch only are there at
    once. So many histories at a time are encoded, and once more on the way back. Embeddings are looked up and updated
    for the whole batch.

    The loss of task t is Σ_b m w ℓ / Σ_b m w over the rows b of the global batch, m being 1 where a row has a label of
    the task and else 0, w the row's weight; 0 where no row has one. So it depends neither on the number of ranks nor on
    micro-batches, a row of weight 2 is that row twice, and a row without a label might as well not be there.

    Args:
        model: from ids and numbers to logits.
        weighting: the `weighting` section of the configuration; none: the recipe's weights.
        micro_batch_size: rows of a micro-batch; 0: the whole batch.
        uneven: labels may be missing, or rows weigh differently. Else Σ_b m w is the number of rows, which the reader
            knows; otherwise it takes an exchange between the ranks in every step.
        weight_decay: λ of what the loss to minimise gains: λ/2 Σ e² over the pooled embeddings e of a row, averaged
            over the rows of the global batch. A row of a table shrinks when it is looked up, as often as it is. (FBGEMM
            1.8 takes a weight decay for its optimisers and does nothing with it on CPUs.)

    Raises:
        UserError: no task has a weight, the weighting needs embedding tables and there are none, or the model or the
            weighting needs the whole batch at once.
    """

    def __init__(
        self,
        model: RankingModel,
        weighting: WeightingConfig | None = None,
        micro_batch_size: int = 0,
        *,
        uneven: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.micro_batch_size, self.uneven = model, micro_batch_size, uneven
        self.weight_decay = weight_decay
        weighting = weighting or WeightingConfig()
        tasks = model.dense.inputs.tasks
        if not any(task.weight for task in tasks):
            names = ", ".join(task.name for task in tasks)
            raise UserError(
                f"training.tasks: the recipe gives weight 0 to all tasks to train ({names}); give one of them a weight "
                "there, or train others"
            )
        if weighting.method in ("gradnorm", "multibalance") and not model.embeddings.tables:
            raise UserError(
                f"weighting.method: {weighting.method} balances gradients of embeddings, and all features are numeric; "
                "choose another method"
            )
        self.weighting = make_weighting(weighting, torch.tensor([task.weight for task in tasks]))
        if micro_batch_size and not self.weighting.known_ahead:
            raise UserError(
                f"training.micro_batch_size: 0 with weighting.method {weighting.method}, not {micro_batch_size}"
            )
        if micro_batch_size and (which := normalising(model)):
            raise UserError(
                f"training.micro_batch_size: 0 with {which}, which normalises over the batch, not {micro_batch_size}"
            )

    @classmethod
    def from_config(cls, config: Config, dataset: Dataset, tasks: tuple[Task, ...]) -> TrainModule:
        """What a run's configuration describes, its tables on the meta device."""
        model = RankingModel.from_config(config, dataset, tasks)
        if config.training.batch_size == 1 and (which := normalising(model)):
            raise UserError(f"training.batch_size: 2 or more with {which}: one row less its own mean is nothing")
        uneven = dataset.row_weight or any(dataset.is_partial(task) or task.row_weight for task in tasks)
        return cls(
            model,
            config.weighting,
            config.training.micro_batch_size,
            uneven=uneven,
            weight_decay=config.embedding.weight_decay,
        )

    def dense_parameters(self) -> list[nn.Parameter]:
        """Those of the networks and of the weighting: all but the tables."""
        return [p for part in (*self.model.networks.values(), self.weighting) for p in part.parameters()]

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        """The loss to minimise (a scalar) and `Output`."""
        pooled = self.model.embed(batch.sparse, batch.longest, self.micro_batch_size)
        if isinstance(pooled, Proxy):
            # TorchRec's pipeline traces this function, only to find which part of a batch is looked up.
            return pooled
        loss, output = self.loss(pooled, batch)
        return loss + self._penalty(pooled, batch) if self.weight_decay else loss, output

    def _penalty(self, pooled: dict[str, Tensor], batch: Batch) -> Tensor:
        """What weight decay adds to the loss; see the class."""
        # The rows' weights are 1 over their number, those of padding 0.
        squares = torch.stack([values.square().sum(1) for values in pooled.values()]).sum(0)
        return 0.5 * self.weight_decay * (batch.weights * squares).sum()

    def loss(self, pooled: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Output]:
        """As `forward`, from the pooled embeddings of the batch."""
        rows = self._micro_batches(batch)
        labels = learned_labels(self.model.dense, batch.labels)
        weights, observed = self._weights(batch, labels)
        if len(rows) > 1 and torch.is_grad_enabled():
            return self._accumulate(pooled, batch, rows, labels, weights, observed)
        parts = []
        for some in rows:
            x = {name: _rows(values, some) for name, values in pooled.items()}
            parts.append(self.model.outputs(x, _rows(batch.numeric, some)))
        # Padding was left out: it must not enter the statistics of batch normalisation.
        outputs = F.pad(torch.cat(parts), (0, 0, 0, len(batch.weights) - batch.rows))
        logits, losses, auxiliary = self._losses(outputs, labels, weights)
        inputs, parameters = list(pooled.values()), list(self.model.dense.parameters())
        loss = self.weighting(losses, inputs, parameters, observed, batch.row_weights)
        return loss + auxiliary, Output(losses.detach(), observed, logits.detach(), batch)

    def _weights(self, batch: Batch, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of every row for every task, m w / Σ m w [B, T]; and whether the global batch has a label of the task [T].

        They are scaled by the number of ranks, for DDP and TorchRec take the mean of gradients.
        """
        if not self.uneven:
            return batch.weights.unsqueeze(1).expand_as(labels), labels.new_ones(labels.shape[1])
        weights = (~labels.isnan() & (batch.weights > 0).unsqueeze(1)).to(labels.dtype)
        if batch.row_weights is not None:
            weights = weights * batch.row_weights
        totals = sum_over_ranks(weights.sum(0))
        observed = (totals > 0).to(labels.dtype)
        return weights * (observed * world_size() / torch.where(totals > 0, totals, 1.0)), observed

    def _accumulate(
        self,
        pooled: dict[str, Tensor],
        batch: Batch,
        micro_batches: Sequence[slice],
        labels: Tensor,
        row_weights: Tensor,
        observed: Tensor,
    ) -> tuple[Tensor, Output]:
        """As `loss`, with the gradients made on the way."""
        self.weighting.begin_step(observed)
        weights = self.weighting.weights()
        # Leaves of their own: a gradient that reached the parameters would start DDP's all-reduce before the last one.
        parameters = {name: p.detach().requires_grad_() for name, p in self.model.dense.named_parameters()}
        gradients = {name: torch.zeros_like(values) for name, values in pooled.items()}
        logits = torch.zeros_like(labels)
        losses, auxiliary = torch.zeros_like(weights), torch.zeros_like(weights[0])
        for rows in micro_batches:
            x = {name: values[rows].detach().requires_grad_() for name, values in pooled.items()}
            outputs = self.model.outputs(x, batch.numeric[rows], parameters)
            mine, of_tasks, of_model = self._losses(outputs, labels[rows], row_weights[rows])
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
        return loss, Output(losses, observed, logits, batch)

    def _micro_batches(self, batch: Batch) -> list[slice]:
        """The real rows, one micro-batch after the other; one that is empty where there are none."""
        size = self.micro_batch_size or max(batch.rows, 1)
        return [slice(start, min(start + size, batch.rows)) for start in range(0, max(batch.rows, 1), size)]

    def _losses(self, outputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The logits [B, T], the loss of every task [T], and what the model's paper adds to their weighted sum."""
        model = self.model.dense
        auxiliary = auxiliary_loss(model, outputs, labels, weights)
        logits = outputs[:, : labels.shape[1]]
        losses = task_losses(learned_logits(model, logits), labels, weights, model.inputs.tasks)
        return logits, losses, logits.new_zeros(()) if auxiliary is None else auxiliary


def _rows(values: Tensor, rows: slice) -> Tensor:
    """Some rows; where they are all, without a slice, whose gradient would be copied."""
    return values if rows == slice(0, len(values)) else values[rows]
