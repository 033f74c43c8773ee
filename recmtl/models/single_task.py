"""Single task: one tower on the embeddings."""

from __future__ import annotations

from torch import Tensor

from recmtl.config.models import SingleTaskConfig
from recmtl.errors import UserError
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.layers import Towers


class SingleTask(Model):
    """logit = tower(x), for exactly one task.

    Raises:
        UserError: the run trains more than one task.
    """

    def __init__(self, config: SingleTaskConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        if len(inputs.tasks) != 1:
            names = ", ".join(task.name for task in inputs.tasks)
            raise UserError(f"training.tasks: single_task trains one task; name one of {names}")
        self.towers = Towers(1, inputs.width, config.tower, config.dropout)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """The tower reads x."""
        return x[SHARED]
