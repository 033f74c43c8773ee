"""What every task weighting is: from the losses of all tasks to the one that is minimised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recmtl.config import WeightingConfig


class Weighting(nn.Module):
    """The recipe's weights alone (`fixed`), and base of the other methods: loss = Σ_t a_t L_t.

    a [T] are the recipe's weights. They multiply what a method makes of each task, so that they say which task matters
    more whatever the method: none of them learns a away.

    A subclass sets `factors` in `begin_step` or, where the losses of the step decide them, in `combine`. What it must
    remember over steps is a parameter (trained by Adam at `weighting.lr`) or a persistent buffer, the same on every
    rank: checkpoints hold both.

    Args:
        config: the `weighting` section of the configuration.
        task_weights: a [T].
    """

    known_ahead: ClassVar[bool] = True
    """Whether what multiplies the losses of a step is known before them, as micro-batches need it."""

    def __init__(self, config: WeightingConfig, task_weights: Tensor) -> None:
        super().__init__()
        self.config = config
        self.task_weights: Tensor
        self.register_buffer("task_weights", task_weights, persistent=False)
        self.factors: Tensor
        """What the method multiplied a task's loss with in the latest step [T]."""
        self.register_buffer("factors", torch.ones_like(task_weights), persistent=False)
        self.observed: Tensor
        """Whether a row of the step has a label of a task, 1 or 0 [T]. A task without one adds nothing to the loss, nor
        to what a method remembers."""
        self.register_buffer("observed", torch.ones_like(task_weights), persistent=False)
        self.row_weights: Tensor | None = None
        """What the rows of the step weigh for each task [B, T]; None: all the same."""
        self.step = 0
        """Steps of the run that are done; the trainer keeps it up to date."""

    def forward(
        self,
        losses: Tensor,
        pooled: Sequence[Tensor],
        parameters: Sequence[Tensor],
        observed: Tensor | None = None,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss to minimise (a scalar). Without gradients, as in evaluation, nothing is weighted or remembered.

        Args:
            losses: of every task on this rank [T]; their mean over ranks is that of the global batch.
            pooled: the pooled embeddings that the model read, each [B, ΣD].
            parameters: the model's.
            observed: whether a row of the global batch has a label of the task, 1 or 0 [T]; None: of all tasks.
            row_weights: what this rank's rows weigh for each task [B, T]; None: all the same.
        """
        if not torch.is_grad_enabled():
            return losses.sum()
        self.row_weights = row_weights
        self.begin_step(torch.ones_like(self.observed) if observed is None else observed)
        return self.combine(losses, pooled, parameters)

    def begin_step(self, observed: Tensor) -> None:
        """Set `observed`, and `factors` as far as they do not depend on the losses of the step."""
        self.observed.copy_(observed)

    def combine(self, losses: Tensor, pooled: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """As `forward`, with gradients and after `begin_step`."""
        return (self.task_weights * self.factors * losses).sum()

    def per_row(self, gradients: Tensor) -> Tensor:
        """Gradients of pooled embeddings as their inner products want them: a row of weight w counts as w rows.

        Its gradient is w g, where w rows have w gradients g: ‖w g‖² / w = w ‖g‖².

        Args:
            gradients: of every task [T, B, D].
        """
        if self.row_weights is None:
            return gradients
        weights = self.row_weights.T.unsqueeze(2)
        return gradients * torch.where(weights > 0, weights.rsqrt(), 0.0)

    def weights(self) -> Tensor:
        """What multiplied each task's loss in the latest step [T]."""
        return self.task_weights * self.factors

    def observe(self, losses: Tensor, steps: Tensor) -> None:
        """Take note of the global losses of some steps, every step once, in time.

        Args:
            losses: summed over the steps [T].
            steps: in which a row had a label of the task [T].
        """

    def end_epoch(self) -> None:
        """An epoch is complete."""


class GivenGradients(torch.autograd.Function):
    """A loss whose backward pass gives tensors the gradients that are named for them.

    Args:
        loss: a scalar.
        gradients: of every tensor, None where it gets none; the backward pass hands them over and empties the list.
        tensors: whose gradients they are.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *tensors: Tensor) -> Tensor:
        """The loss."""
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """That of the loss as it comes, the given ones times it."""
        given = [None if one is None else one.mul_(gradient) for one in ctx.gradients]
        ctx.gradients.clear()
        return gradient, None, *given


def inner_products(gradients: Tensor) -> Tensor:
    """⟨g_i, g_j⟩ [T, T] of gradients [T, ...]."""
    flat = gradients.flatten(1)
    return flat @ flat.T
