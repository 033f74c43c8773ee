"""MultiBalance: gradients of one size that do not conflict, at the embeddings (He et al., 2024, arXiv 2411.11871)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recmtl.config import WeightingConfig
from recmtl.objectives.weighting.base import GivenGradients, Weighting, inner_products
from recmtl.runtime.collectives import sum_over_ranks, world_size

ACCURACY = 1e-9
"""Numbers up to this one count as 0 where shares are found."""


class MultiBalance(Weighting):
    r"""loss = Σ_t a_t w_t L_t with w_t = n · λ_t · M / m_t, where n tasks have a gradient in the step:
        g_t = ∂L_t/∂x, x the pooled embeddings of the global batch;
        m_t ← β m_t + (1 − β) ‖g_t‖, the first norm at the start, and M the mean of m over tasks;
        λ = argmin ‖Σ_t λ_t g_t / m_t‖² + ρ ‖λ‖² over λ ≥ 0 with Σ λ = 1.

    Dividing by m makes tasks' gradients alike in size; a moving average follows the noise of single batches less than a
    norm does. The shortest combination of them points against none: its inner product with every g_t / m_t is at least
    −ρ/4, and with ρ → 0 no task loses by the step. The pull ρ makes λ unique and calm where gradients are nearly
    parallel: equal gradients have equal shares, so w = 1. A task without a gradient, as one that no row of the batch
    has a label of, has no share, w = 1 and an m that stays.

    Only gradients with respect to x are needed, not those of shared parameters: one pass back through the network for
    each task, then one for the parameters by the weighted loss. Tables get Σ_t a_t w_t g_t, which is known by then. a
    is left out of m and λ, or they would undo it.

    λ is found on the host: a GPU waits, once a step, for T × T numbers to come and T to go back.

    Interpretations: the paper's shared representation is the output of a shared bottom, which not every model has; the
    pooled embeddings are what the tasks of every model share, as for `GradNorm`. Weights scale a task's whole loss, and
    so its own tower, too. The scale M and the pull are ours.
    """

    known_ahead = False

    def __init__(self, config: WeightingConfig, task_weights: Tensor) -> None:
        super().__init__(config, task_weights)
        self.sizes: Tensor
        """Moving averages m of the norms of the tasks' global gradients [T]; 0 before the first."""
        self.register_buffer("sizes", torch.zeros_like(task_weights))

    def combine(self, losses: Tensor, pooled: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """The loss; see the class."""
        by_task = [torch.autograd.grad(loss, pooled, retain_graph=True, materialize_grads=True) for loss in losses]
        with torch.no_grad():
            stacked = [torch.stack(one) for one in zip(*by_task, strict=True)]
            # A rank's losses are scaled by the number of ranks, for DDP and TorchRec take the mean of gradients.
            gram = torch.stack([inner_products(self.per_row(g)) for g in stacked]).sum(0)
            gram = sum_over_ranks(gram) / world_size() ** 2
            self.factors.copy_(self._balance(gram))
            weights = self.weights()
            changed = [torch.einsum("t,t...->...", weights, g) for g in stacked]
        loss = super().combine(losses, pooled, parameters)
        changed += torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        return GivenGradients.apply(loss.detach(), changed, *pooled, *parameters)

    def _balance(self, gram: Tensor) -> Tensor:
        """The weights w [T] from ⟨g_s, g_t⟩ [T, T]; takes the norms into the moving averages."""
        norms = gram.diagonal().sqrt()
        seen, decay = norms > 0, self.config.decay
        moved = torch.where(self.sizes > 0, decay * self.sizes + (1 - decay) * norms, norms)
        self.sizes.copy_(torch.where(seen, moved, self.sizes))
        known = self.sizes > 0
        scales = torch.where(known, 1 / self.sizes, 0.0)
        mean = self.sizes.sum() / known.sum().clamp(min=1)
        cosines = (gram * scales * scales.unsqueeze(1)).double().cpu().numpy()
        factors, some = torch.ones_like(norms), cosines.diagonal() > 0
        if some.any():
            found = some.sum() * shares(cosines[np.ix_(some, some)], self.config.pull)
            factors[seen] = torch.from_numpy(found).to(factors) * (mean * scales)[seen]
        return factors


def shares(gram: np.ndarray, pull: float) -> np.ndarray:
    """The minimum of λ'Gλ + ρ λ'λ over the simplex, λ [n].

    With Q = G + ρI it is v / Σ v, where v ≥ 0 has the least v'Qv / 2 − Σ v: both have the same conditions of
    optimality up to that scale. v is found exactly, by the active sets of Lawson and Hanson (Solving Least Squares
    Problems, chapter 23).

    Args:
        gram: G, inner products [n, n].
        pull: ρ.
    """
    q = gram + pull * np.eye(len(gram))
    v, free = np.zeros(len(q)), np.zeros(len(q), dtype=bool)
    while True:
        rise = np.where(free, 0.0, 1 - q @ v)
        if rise.max() <= ACCURACY:
            return v / v.sum()
        free[rise.argmax()] = True
        while True:
            found = np.zeros(len(q))
            found[free] = np.linalg.solve(q[np.ix_(free, free)], np.ones(free.sum()))
            if found[free].min() > 0:
                v = found
                break
            # Go towards it as far as v stays above 0; what reaches 0 is held there.
            falling = free & (found <= 0)
            v = v + (v[falling] / (v[falling] - found[falling])).min() * (found - v)
            free &= v > ACCURACY
            v[~free] = 0
