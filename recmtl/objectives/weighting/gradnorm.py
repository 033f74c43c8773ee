"""GradNorm: weights that even out the tasks' gradients (Chen et al., ICML 2018, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recmtl.config import WeightingConfig
from recmtl.objectives.weighting.base import GivenGradients, Weighting
from recmtl.runtime.collectives import sum_over_ranks, world_size

FLOOR = 1e-6
"""Weights that a step made negative get this one."""


class GradNorm(Weighting):
    r"""loss = Σ_t a_t w_t L_t, w [T] learned, 1 at the start and Σ w = T at every step.

    w minimises Σ_t |G_t − Ḡ · r_t^α|, the right-hand side held constant:
        G_t = w_t · ‖∂L_t/∂x‖, x the pooled embeddings of the global batch, and Ḡ its mean over tasks;
        r_t = (L_t / L_t at the first step), divided by its mean over tasks.
    So tasks send gradients of one size into the tables, and those that learn more slowly larger ones. a is left out of
    G, or w would learn it away. Means are over the tasks of which a row of the step has a label; the others get no
    gradient of w. The paper takes the norm at the last layer that all tasks share; the pooled embeddings
    are what the tasks of every model share.
    """

    known_ahead = False

    def __init__(self, config: WeightingConfig, task_weights: Tensor) -> None:
        super().__init__(config, task_weights)
        self.w = nn.Parameter(torch.ones_like(task_weights))
        self.first: Tensor
        """Global losses of the first step in which a row had a label of the task [T]; 0 before it."""
        self.register_buffer("first", torch.zeros_like(task_weights))

    def combine(self, losses: Tensor, pooled: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """The loss; see the class."""
        by_task = [torch.autograd.grad(loss, pooled, retain_graph=True, materialize_grads=True) for loss in losses]
        with torch.no_grad():
            by_row = [self.per_row(torch.stack(one)) for one in zip(*by_task, strict=True)]
            squares = torch.stack([g.flatten(1).square().sum(1) for g in by_row]).sum(0)
            squares, total = sum_over_ranks(torch.stack([squares, losses]))
            # A rank's losses are scaled by the number of ranks, for DDP and TorchRec take the mean of gradients.
            norms, means = squares.sqrt() / world_size(), total / world_size()
            self.first.copy_(torch.where(self.first > 0, self.first, means))
            observed = self.observed
            count = observed.sum().clamp(min=1)
            rates = torch.where(observed > 0, means / self.first, 0.0)
            rates /= rates.sum() / count

            self.w.clamp_(min=FLOOR).mul_(len(losses) / self.w.sum())
            self.factors.copy_(self.w)
            sizes = self.w * norms
            excess = sizes - sizes.sum() / count * rates**self.config.alpha
            gradient = excess.sign() * norms * observed
        return GivenGradients.apply(super().combine(losses, pooled, parameters), [gradient], self.w)
