"""ME-MMoE: MMoE whose experts read different embedding tables, a baseline of the STEM paper (Su et al., AAAI 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recmtl.config.models import MEMMoEConfig
from recmtl.errors import UserError
from recmtl.models.base import Inputs, Model, own_and_shared
from recmtl.models.layers import Gates, MLPs, Towers, mix
from recmtl.schema import Task


class MEMMoE(Model):
    r"""T + 1 tables a feature give x_1 .. x_{T+1}; expert e reads x_{e mod (T+1)}, gates read all of them.

    z_t = Σ_e softmax_e(W_t [x_1; …; x_{T+1}]) f_e(x_{e mod (T+1)}) [B, H]; logit_t = tower_t(z_t). Nothing ties a table
    to a task: every task trains every table, and no gradient is stopped.

    The paper names this baseline in its experiments and gives no equations.

    Raises:
        UserError: fewer experts than tables.
    """

    def __init__(self, config: MEMMoEConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        tasks = len(inputs.tasks)
        self.sets = self.table_sets(config, inputs.tasks)
        if config.experts < len(self.sets):
            raise UserError(
                f"model.experts: {len(self.sets)} or more, one for each of the tables that "
                f"{tasks} tasks and the shared one have, not {config.experts}"
            )
        # Experts in the order of the tables they read.
        self.sizes = [len(range(first, config.experts, len(self.sets))) for first in range(len(self.sets))]
        self.experts = MLPs(config.experts, inputs.width, config.expert_widths, dropout=config.dropout)
        self.gates = Gates(tasks, inputs.width * len(self.sets), config.experts, config.gate)
        self.towers = Towers(tasks, self.experts.out_features, config.tower, config.dropout)

    @classmethod
    def table_sets(cls, config: Any, tasks: tuple[Task, ...]) -> tuple[str, ...]:
        """One copy of every table a task, and one more."""
        return own_and_shared(tasks)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """All z_t [T, B, H]."""
        tables = [x[table_set] for table_set in self.sets]
        experts = self.experts(tables, self.sizes)
        return mix(self.gates(torch.cat(tables, dim=1)), experts)
