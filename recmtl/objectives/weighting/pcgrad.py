"""PCGrad: gradients of tasks that conflict are projected (Yu et al., NeurIPS 2020, section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recmtl.objectives.weighting.base import GivenGradients, Weighting, inner_products
from recmtl.runtime.collectives import sum_over_ranks, world_size


class PCGrad(Weighting):
    r"""The gradient of what tasks share is Σ_i g_i', where g_i' starts as g_i = ∂(a_i L_i) and meets every other task j
    in random order: where ⟨g_i', g_j⟩ < 0, g_i' ← g_i' − ⟨g_i', g_j⟩ / ‖g_j‖² · g_j.

    The vector g_i holds the gradients of the pooled embeddings, which stand for the tables, and of the model's
    parameters, as far as at least two tasks reach them; what one task alone reaches keeps its gradient. Whether it does
    is told for each table set as a whole, and for each index of a parameter's first dimension: experts, gates
    and towers lie in batched parameters, one index a network.

    Gradients are global: those of parameters are averaged over ranks, inner products of embeddings' are summed. The
    order is drawn from the step: the same on every rank and after an interruption.
    """

    known_ahead = False

    def combine(self, losses: Tensor, pooled: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """The loss Σ_t a_t L_t with the changed gradient in place of its own."""
        losses, tasks = self.task_weights * losses, len(losses)
        inputs = [*pooled, *parameters]
        by_task = [torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True) for loss in losses]
        with torch.no_grad():
            stacked = [torch.stack(one) for one in zip(*by_task, strict=True)]
            # [T, units, values]: a unit is shared as a whole or not.
            embedded = [g.view(tasks, 1, -1) for g in stacked[: len(pooled)]]
            dense = [g.reshape(*g.shape[:2], -1) for g in mean_over_ranks(stacked[len(pooled) :])]
            # A rank's losses are scaled by the number of ranks, for DDP and TorchRec take the mean of gradients.
            products = torch.stack([inner_products(self.per_row(g)) for g in stacked[: len(pooled)]])
            grams = sum_over_ranks(products) / world_size() ** 2
            shared = [gram.diagonal().unsqueeze(1) > 0 for gram in grams] + [(g != 0).any(2) for g in dense]
            shared = [reached.sum(0) >= 2 for reached in shared]

            gram = torch.stack([gram * one for gram, one in zip(grams, shared[: len(pooled)], strict=True)]).sum(0)
            for g, one in zip(dense, shared[len(pooled) :], strict=True):
                gram += inner_products(g * one.unsqueeze(1))
            self.factors.copy_(project(gram, self._orders(tasks, gram.device)))
            changed = []
            for tensor, g, one in zip(inputs, [*embedded, *dense], shared, strict=True):
                factors = torch.where(one, self.factors.unsqueeze(1), 1.0)
                changed.append((factors.unsqueeze(2) * g).sum(0).view_as(tensor))
        return GivenGradients.apply(losses.sum().detach(), changed, *inputs)

    def _orders(self, tasks: int, device: torch.device) -> Tensor:
        """For every task the others, in the order it meets them [T, T − 1]."""
        rng = np.random.default_rng(self.step)
        drawn = np.array([rng.permutation(np.delete(np.arange(tasks), i)) for i in range(tasks)])
        orders = torch.from_numpy(drawn)
        # From page-locked memory the copy runs beside the host.
        return orders if device.type == "cpu" else orders.pin_memory().to(device, non_blocking=True)


def project(gram: Tensor, orders: Tensor) -> Tensor:
    """Coefficients c [T] with Σ_i g_i' = Σ_j c_j g_j: every g_i' is a combination of the g_j.

    Args:
        gram: ⟨g_i, g_j⟩ [T, T].
        orders: for every task the others, in the order it meets them [T, T − 1].
    """
    rows, gram = torch.arange(len(gram), device=gram.device), gram.double()
    combinations = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)  # row i: g_i' in terms of the g_j
    for others in orders.T:
        products = (combinations * gram[others]).sum(1)
        lengths = gram[others, others].clamp(min=torch.finfo(gram.dtype).tiny)
        combinations[rows, others] -= products.clamp(max=0) / lengths
    return combinations.sum(0)


def mean_over_ranks(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Means over the ranks of gradients, each [T, ...], in one exchange."""
    flat = torch.cat([g.flatten(1) for g in gradients], dim=1)
    pieces = (sum_over_ranks(flat) / world_size()).split([g[0].numel() for g in gradients], dim=1)
    return [piece.reshape(g.shape) for piece, g in zip(pieces, gradients, strict=True)]
