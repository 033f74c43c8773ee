"""Sums over the ranks for code that also runs without a process group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over all ranks; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Σ_r value_r."""
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """∂(Σ_r loss_r)/∂value: every rank's loss depends on it."""
        return SumOverRanks.apply(gradient)


def sum_over_ranks(value: Tensor) -> Tensor:
    """Σ_r value_r, differentiable; the value itself where there is one rank."""
    return SumOverRanks.apply(value) if world_size() > 1 else value


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
