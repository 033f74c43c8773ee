"""ResFlow: residuals from the parent's tower into the child's, layer by layer (Fu et al., KDD 2024, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recmtl.config.models import ResFlowConfig
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.layers import Towers
from recmtl.models.relations import parents_first, some_parent_indices
from recmtl.schema import Task


class ResidualTowers(Towers):
    r"""Towers whose every layer adds the output of the same layer of the parent's tower.

    h_t^l = f_t^l(h_t^{l−1}) + h_parent^l, f the layer with its activation and dropout; at the last layer, which gives
    the logit, + becomes − for a task whose relation is `given_not`. A task without a parent has a plain tower. All
    tasks' f are one batched product a layer; what is added along the parents then costs little.

    Args:
        tasks: the tasks T.
        parents: where every task's parent stands among them; None: it has none.
        in_features: input width.
        hidden: hidden widths, the same for all tasks, or outputs could not be added.
        dropout: probability of dropping a hidden unit.

    Shape:
        as `Towers`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        parents: Sequence[int | None],
        in_features: int,
        hidden: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__(len(tasks), in_features, hidden, dropout)
        self.links = [(task, parents[task]) for task in parents_first(parents)]
        """(task, its parent), parents first."""
        self.signs = [-1.0 if task.relation == "given_not" else 1.0 for task in tasks]
        """What a parent's logit is multiplied by where it is added to a task's."""

    def forward(self, x: Tensor, scales: Sequence[Tensor] = ()) -> Tensor:
        """Apply every tower; see the class for shapes, and `MLPs` for scales."""
        last = len(self.mlps.weights) - 1
        for layer in range(last + 1):
            own = self.mlps.activate(layer, self.mlps.product(layer, x, scales))
            x = self._add_parents(own, self.signs if layer == last else [1.0] * len(own))
        return x.squeeze(-1).t()

    def _add_parents(self, own: Tensor, signs: Sequence[float]) -> Tensor:
        """The outputs h [T, B, H] from f [T, B, H]."""
        h: dict[int, Tensor] = {}
        for task, parent in self.links:
            h[task] = own[task] if parent is None else torch.add(own[task], h[parent], alpha=signs[task])
        return torch.stack([h[task] for task in range(len(h))])


class ResFlow(Model):
    r"""One tower a task on shared embeddings, each with residuals from its parent's: logit_t = `ResidualTowers`(x)_t.

    A child so starts from all that its parent's tower has learned and adds what is its own: with weights of its own
    that are 0 it equals its parent. Gradients flow back through the residuals, so that children train their parents'
    towers. Nothing is multiplied: a child may be likelier than its parent where the rows say so.

    Interpretations. The paper's tasks are one sequence; here every task follows the parent that the recipe names, which
    allows chains and trees, and a parent that is not trained counts as absent. `given_not`, which the paper does not
    have, adds −logit of the parent, the logit of its complement. The authors' code has PReLU and batch normalisation in
    the towers and raises the weight of positive labels; here layers are those of all towers, and weights the recipe's.

    Raises:
        UserError: several tasks, none with a parent among them.
    """

    def __init__(self, config: ResFlowConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        parents = some_parent_indices(config.name, inputs.tasks)
        self.towers = ResidualTowers(inputs.tasks, parents, inputs.width, config.tower, config.dropout)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """All towers read x."""
        return x[SHARED]
