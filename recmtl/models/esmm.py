"""ESMM: probabilities multiplied along the funnel, over all rows (Ma et al., SIGIR 2018, section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recmtl.config.models import ESMMConfig
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.layers import Towers
from recmtl.models.relations import parents_first, some_parent_indices


class ESMM(Model):
    r"""One tower a task on shared embeddings; a task with a parent has the tower of its conditional probability.

    With b_t = tower_t(x) [B] and the task's `parent` and `relation`:
        no parent:  p(t) = σ(b_t);
        given:      p(t) = p(parent) · σ(b_t), σ(b_t) = p(t | parent);
        given_not:  p(t) = (1 − p(parent)) · σ(b_t), σ(b_t) = p(t | not parent).
    The loss is on every p(t), over all rows, and never on a conditional alone (`recmtl.objectives.losses`). The paper
    has one link (click → buy) and sums embeddings over a field; chains, trees and `given_not` follow by the same
    product.

    Logits are log p − log(1 − p), each kept in log space: log p adds up along the chain, and
    1 − p·σ(b) = (1 − p) + p·σ(−b) is a sum of positive terms, so nothing cancels and no gradient explodes.

    `conditional_logits` are b, of p(t | parent) or p(t | not parent). A task whose label is conditional, so that only
    rows of its parent have one, is predicted by its b, as the label asks: the logit of such a task is b, not that of p.

    A parent that is not trained counts as absent. One task alone is its own tower.

    Raises:
        UserError: several tasks, none with a parent among them.
    """

    def __init__(self, config: ESMMConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.parents = some_parent_indices(config.name, inputs.tasks)
        self.order = parents_first(self.parents)
        self.conditional = [
            task.conditional and parent is not None for task, parent in zip(inputs.tasks, self.parents, strict=True)
        ]
        """Whether a task's label is of its conditional probability."""
        self.towers = Towers(len(inputs.tasks), inputs.width, config.tower, config.dropout)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """All towers read x."""
        return x[SHARED]

    def compose_logits(self, logits: Tensor) -> Tensor:
        """The tasks' logits [B, T] from b [B, T]: those of the products, but b of a task with a conditional label."""
        return self._compose(logits, composed=[False] * len(self.parents), kept=self.conditional)

    def joint_logits(self, logits: Tensor) -> Tensor:
        """Logits of all products [B, T] from the tasks' logits [B, T]."""
        return self._compose(logits, composed=[not conditional for conditional in self.conditional])

    def _compose(self, logits: Tensor, composed: Sequence[bool], kept: Sequence[bool] = ()) -> Tensor:
        """Logits of the products [B, T].

        Args:
            logits: [B, T].
            composed: the tasks whose logit is that of the product already.
            kept: the tasks whose logit is to stay as it is; none: of no task.
        """
        if all(composed):
            return logits
        yes, no = F.logsigmoid(logits).unbind(1), F.logsigmoid(-logits).unbind(1)
        log_p: dict[int, Tensor] = {}
        log_not: dict[int, Tensor] = {}
        for task in self.order:
            parent = self.parents[task]
            if parent is None or composed[task]:
                log_p[task], log_not[task] = yes[task], no[task]
                continue
            open_, closed = log_p[parent], log_not[parent]
            if self.inputs.tasks[task].relation == "given_not":
                open_, closed = closed, open_
            log_p[task] = open_ + yes[task]
            log_not[task] = torch.logaddexp(closed, open_ + no[task])
        stays = [kept[task] if kept else False for task in range(len(self.parents))]
        pairs = zip(logits.unbind(1), stays, range(len(stays)), strict=True)
        return torch.stack([z if stay else log_p[task] - log_not[task] for z, stay, task in pairs], dim=1)
