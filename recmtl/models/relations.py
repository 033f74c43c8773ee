"""The order that tasks' parents give, for the models that need one."""

from __future__ import annotations

from collections.abc import Sequence

from recmtl.errors import UserError
from recmtl.schema import Task


def parent_indices(tasks: Sequence[Task]) -> list[int | None]:
    """Where every task's parent stands among `tasks`; None: it has none, or its parent is not trained."""
    places = {task.name: i for i, task in enumerate(tasks)}
    return [None if task.parent is None else places.get(task.parent) for task in tasks]


def some_parent_indices(model: str, tasks: Sequence[Task]) -> list[int | None]:
    """As `parent_indices`, for a model that is nothing without an order of the tasks.

    Raises:
        UserError: several tasks, none with a parent among them.
    """
    parents = parent_indices(tasks)
    if len(tasks) > 1 and not any(parent is not None for parent in parents):
        names = ", ".join(task.name for task in tasks)
        raise UserError(f"{model} needs a task with a parent; name it in the recipe (training {names})")
    return parents


def parents_first(parents: Sequence[int | None]) -> list[int]:
    """The tasks such that each comes after its parent, otherwise as they stand. Parents must not form a cycle."""
    order: list[int] = []
    for task in range(len(parents)):
        ancestors: list[int] = []
        current: int | None = task
        while current is not None and current not in order:
            ancestors.append(current)
            current = parents[current]
        order += reversed(ancestors)
    return order
