"""What every task weighting is: from the losses of all tasks to the one that is minimised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recmtl.config import WeightingConfig


class Weighting(nn.Module):
    """The recipe's weights alone (`fixed`), and base of the other methods: loss = Σ_t a_t L_t.

    a [T] are the recipe's weights. They multiply what a method makes of each task, so that they say which task matters
    more whatever the method: none of them learns a away.

    A subclass computes `combine`. What it must remember over steps is a parameter (trained by Adam at `weighting.lr`)
    or a persistent buffer, the same on every rank: checkpoints hold both.

    Args:
        config: the `weighting` section of the configuration.
        recipe: a [T].
    """

    def __init__(self, config: WeightingConfig, recipe: Tensor) -> None:
        super().__init__()
        self.config = config
        self.recipe: Tensor
        self.register_buffer("recipe", recipe, persistent=False)
        self.factors: Tensor
        """What the method multiplied a task's loss with in the latest step [T]."""
        self.register_buffer("factors", torch.ones_like(recipe), persistent=False)
        self.step = 0
        """Steps of the run that are done; the trainer keeps it up to date."""

    def forward(self, losses: Tensor, pooled: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """The loss to minimise (a scalar). Without gradients, as in evaluation, nothing is weighted or remembered.

        Args:
            losses: of every task on this rank [T]; their mean over ranks is that of the global batch.
            pooled: the pooled embeddings that the model read, each [B, ΣD].
            parameters: the model's.
        """
        return self.combine(losses, pooled, parameters) if torch.is_grad_enabled() else losses.sum()

    def combine(self, losses: Tensor, pooled: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """As `forward`, with gradients."""
        return (self.recipe * self.factors * losses).sum()

    def weights(self) -> Tensor:
        """What multiplied each task's loss in the latest step [T]."""
        return self.recipe * self.factors

    def observe(self, losses: Tensor) -> None:
        """Take note of the global losses of some steps, summed over the steps [T]: every step once, in time."""

    def end_epoch(self) -> None:
        """An epoch is complete."""


def with_gradients(loss: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """`loss`, whose backward pass also gives every one of `tensors` the gradient named for it."""
    surrogate = torch.stack([(t * g).sum() for t, g in zip(tensors, gradients, strict=True)]).sum()
    return loss + (surrogate - surrogate.detach())
