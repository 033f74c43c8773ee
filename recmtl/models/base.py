"""What every model is: a dense network from pooled embeddings to one logit a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from recmtl.data.dataset import Task
from recmtl.models.layers import Towers

SHARED = "shared"
"""The embedding group that all tasks read."""


def own_and_shared(tasks: tuple[Task, ...]) -> tuple[str, ...]:
    """Embedding groups: one of every task's own, called as the task, and the shared one."""
    return (*(task.name for task in tasks), SHARED)


@dataclass(frozen=True)
class Inputs:
    """What a model is built for."""

    tasks: tuple[Task, ...]
    """The tasks, in the order of the logits."""
    width: int
    """Width of x: the concatenated pooled embeddings of all features, then the numeric features."""
    columns: Mapping[str, slice]
    """Where each feature lies in x."""


class Model(nn.Module):
    """Base of the models: x of every embedding group ── represent ── towers ── relate ── logits [B, T].

    A subclass builds itself and its `towers` from its sizes and `Inputs`, and says in `represent` what the towers read.
    A new model is one file with such a class; its sizes and its line of the registry are in `recmtl/config/models.py`.
    """

    towers: Towers
    """One a task."""

    def __init__(self, config: Any, inputs: Inputs) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs

    @classmethod
    def embedding_groups(cls, config: Any, tasks: tuple[Task, ...]) -> tuple[str, ...]:
        """Names of the copies of every embedding table that the model wants; one shared copy by default."""
        return (SHARED,)

    def represent(self, x: dict[str, Tensor]) -> Tensor:
        """What the towers read, [T, B, H] or one [B, H] for all tasks, from x [B, width] of every embedding group."""
        raise NotImplementedError

    def relate(self, logits: Tensor) -> Tensor:
        """The tasks' logits [B, T] from those of the towers [B, T], where tasks depend on each other."""
        return logits

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """Logits [B, T] from x [B, width] of every embedding group, by the group's name."""
        return self.relate(self.towers(self.represent(x)))

    def auxiliary_loss(self, logits: Tensor, weights: Tensor) -> Tensor | None:
        """A term to add to the loss (a scalar), from logits [B, T] and row weights [B]; None: there is none.

        It is a sum over rows, as the loss is, so that it adds up over micro-batches and ranks.
        """
        return None
