"""The optimiser of tables that every rank holds whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchrec.optim.keyed import KeyedOptimizer

SMALLEST_EPS = 1e-30
"""In place of 0, so that a row without a gradient or a state stays as it is: 0 / 0 is no number. Beside the root of any
other state it vanishes."""


class ReplicatedTables(KeyedOptimizer):
    """A dense optimiser whose state has the names and shapes that FBGEMM's fused one gives it.

    So a checkpoint does not tell whether a table was sharded or replicated, and a run can go on with either.

    The weights are float32 whatever `embedding.dtype` says: dense gradients are what the weights are, and in float16
    most are zero.

    Args:
        tables: the tables' weights by parameter name (``....embedding_bags.<table>.weight``).
        optimizer: SGD, Adagrad or row-wise Adagrad over those weights: the accumulator is all their state.
        rounded: round them after every step to what this type holds, as FBGEMM does on CPUs; None: don't.
    """

    def __init__(
        self, tables: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, rounded: torch.dtype | None
    ) -> None:
        self._optimizer, self._rounded = optimizer, rounded
        state: dict[Tensor, dict[str, Tensor]] = {}
        for name, weight in tables.items():
            accumulator = optimizer.state[weight].get("sum")
            if accumulator is not None:
                # A view: [rows] for row-wise Adagrad's [rows, 1].
                value = accumulator.view(-1) if accumulator.shape[1] == 1 else accumulator
                state[weight] = {f"{name.split('.')[-2]}.momentum1": value}
        for group in optimizer.param_groups:
            if "eps" in group:
                group["eps"] = max(group["eps"], SMALLEST_EPS)
        super().__init__(tables, state, optimizer.param_groups)

    def init_state(self, sparse_grad_parameter_names: Any = None) -> None:
        """Nothing to do: the accumulators are there from the start."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Clear the gradients."""
        self._optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:
        """Update every table by its dense gradient."""
        self._optimizer.step(closure)
        if self._rounded:
            for weight in self.params.values():
                weight.detach().copy_(weight.detach().to(self._rounded))
