"""The order that tasks' parents give, for the models that need one."""

from __future__ import annotations

from collections.abc import Sequence

from recmtl.schema import Task


def parent_indices(tasks: Sequence[Task]) -> list[int | None]:
    """Where every task's parent stands among `tasks`; None: it has none, or its parent is not trained."""
    places = {task.name: i for i, task in enumerate(tasks)}
    return [None if task.parent is None else places.get(task.parent) for task in tasks]


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
