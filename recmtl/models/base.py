"""What every model is: a dense network from pooled embeddings to one logit a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from recmtl.models.layers import Towers
from recmtl.schema import Task

SHARED = "shared"
"""The table set that all tasks read."""


def own_and_shared(tasks: tuple[Task, ...]) -> tuple[str, ...]:
    """Table sets: one of every task's own, called as the task, and the shared one."""
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
    """Base of the models: x of every table set ── task_representations ── towers ── compose_logits ── logits [B, T].

    A subclass builds itself and its `towers` from its sizes and `Inputs`, and says in `task_representations` what the
    towers read. A new model is one file with such a class; its sizes and its line of the registry are in
    `recmtl/config/models.py`.
    """

    towers: Towers
    """One a task."""

    def __init__(self, config: Any, inputs: Inputs) -> None:
        super().__init__()
        self.config, self.inputs = config, inputs
        self.input_layers: nn.Module | None = None

    @classmethod
    def table_sets(cls, config: Any, tasks: tuple[Task, ...]) -> tuple[str, ...]:
        """Names of the copies of every embedding table that the model wants; one shared copy by default."""
        return (SHARED,)

    def read_through(self, layers: nn.Module) -> None:
        """Read x through layers from now on. They are a part of the model: whatever runs, copies or saves it has them.

        A hook, for a model may have a `forward` of its own.
        """
        self.input_layers = layers
        self.register_forward_pre_hook(_read)

    def read(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """X of every table set as it leaves the input layers; `forward` begins with that by itself."""
        if self.input_layers is None:
            return x
        changed: dict[str, Tensor] = self.input_layers(x)
        return changed

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """What the towers read, [T, B, H] or one [B, H] for all tasks, from x [B, width] of every table set."""
        raise NotImplementedError

    def conditional_logits(self, x: dict[str, Tensor]) -> Tensor:
        """The towers' logits [B, T], which `compose_logits` makes the tasks' own.

        σ of them is p(task | parent), or p(task | not parent), for a task with a parent in a model that composes them
        (ESMM); for every other task and in every other model it is p(task), or what the label is of, already.
        """
        return self.towers(self.task_representations(x))

    @property
    def composes(self) -> bool:
        """Whether probabilities of tasks are composed of those of the towers."""
        return type(self).compose_logits is not Model.compose_logits

    def compose_logits(self, logits: Tensor) -> Tensor:
        """The tasks' logits [B, T] from those of the towers [B, T], where probabilities of tasks are composed."""
        return logits

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """Logits [B, T] from x [B, width] of every table set, by the set's name.

        In training a model may give more columns after them, for a loss of its own.
        """
        return self.compose_logits(self.conditional_logits(x))


def _read(model: Model, arguments: tuple[dict[str, Tensor]]) -> tuple[dict[str, Tensor]]:
    return (model.read(*arguments),)
