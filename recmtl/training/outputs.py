"""What a model gives of every row: a probability of each task and, where it composes them, conditional ones."""

from __future__ import annotations

from recmtl.models.ranking_model import RankingModel


def conditional_places(model: RankingModel) -> list[int]:
    """Places of the tasks whose conditional probabilities the model gives beside the joint ones; none if it has none.

    The prediction of a task with a conditional label is conditional itself.
    """
    tasks = model.dense.inputs.tasks
    names = {task.name for task in tasks}
    if not model.dense.composes:
        return []
    return [place for place, task in enumerate(tasks) if task.parent in names and not task.conditional]


def output_columns(model: RankingModel) -> list[str]:
    """Names of the columns of predictions: one a task, then the conditional ones."""
    tasks = model.dense.inputs.tasks
    given = [tasks[place] for place in conditional_places(model)]
    return [f"p_{task.name}" for task in tasks] + [f"p_{t.name}_{t.relation}_{t.parent}" for t in given]
