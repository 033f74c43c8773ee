"""STEM: embedding tables of every task's own beside shared ones (Su et al., AAAI 2024)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recmtl.config.models import STEMConfig
from recmtl.models.base import SHARED, Inputs, Model, own_and_shared
from recmtl.models.cgc import stack
from recmtl.models.layers import Towers
from recmtl.schema import Task


class STEM(Model):
    r"""Shared and task-specific embeddings, with all-forward task-specific-backward gating (section 4).

    T + 1 tables a feature give x_1 .. x_T and x_S, all [B, width]. One level:
        h_t = softmax(W_t (x_t + x_S))·[own experts of t (x_t); sg(experts of every other task j (x_j));
              shared experts(x_S)]  [B, H];
        logit_t = tower_t(h_t).
    sg is the stop-gradient: ∂L_i/∂E_j = 0 for i ≠ j, exactly. W_t is trained through all that it mixes. Without
    `stop_gradient` the experts of other tasks and their tables are trained too; without `cross_task` they are left out.

    More levels (the paper has one): with h_S = softmax(W_S x_S)·[sg(experts of all tasks); shared experts(x_S)], the
    next level reads h_t and h_S in place of x_t and x_S. The shared branch too holds other tasks' experts behind sg.

    Numeric features are part of every x_t and of x_S.
    """

    def __init__(self, config: STEMConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        tasks = len(inputs.tasks)
        everything = list(range(tasks + 1))
        own = [[task, tasks] for task in range(tasks)]
        reads = [*own, [tasks]]
        sees = [everything if config.cross_task else groups for groups in own] + [everything]
        trains = [*own, [tasks]] if config.stop_gradient else sees
        self.levels = stack(config, config.levels, inputs.width, sees, reads, trains)
        self.towers = Towers(tasks, config.expert_widths[-1], config.tower, config.dropout)

    @classmethod
    def table_sets(cls, config: Any, tasks: tuple[Task, ...]) -> tuple[str, ...]:
        """One copy of every table a task, and a shared one."""
        return own_and_shared(tasks)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """All h_t [T, B, H]."""
        h: Tensor | list[Tensor] = [*(x[task.name] for task in self.inputs.tasks), x[SHARED]]
        for level in self.levels:
            h = level(h)
        assert isinstance(h, Tensor)
        return h
