"""ESCM²: ESMM whose conditional probabilities are trained over all rows, not those of the parent alone (SIGIR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from recmtl.config.models import ESCM2Config
from recmtl.models.base import SHARED, Inputs
from recmtl.models.esmm import ESMM
from recmtl.models.layers import Towers


class ESCM2(ESMM):
    r"""ESMM's towers, with a loss of each conditional probability beside those of the products.

    ESMM learns p(t | parent) only through the product with p(parent), which leaves it free where p(parent) is small.
    Learning it in the rows of the parent alone is biased towards the kind of row whose parent is likely. The loss added
    here weighs those rows by 1 / p(parent) and so stands for the mean over all rows, had the parent happened in each:
    `recmtl.objectives.losses.counterfactual`, with inverse propensities (`ips`), or doubly robust (`dr`), for which
    every task with a parent has another tower, that imputes its error: ê = ln(1 + e^z), z [B] the tower's output.

    In training the outputs are [B, T + C] or, with `dr`, [B, T + 2C]: the tasks' logits, then for the C tasks with a
    parent b, the logit of p(t | parent), and ê.

    Source: Wang et al., SIGIR 2022, arXiv 2204.05125, section 4. Interpretations: the paper has one link (click → buy);
    chains, trees and `given_not` are ESMM's. ê is no less than 0, as the errors that it imputes are.

    Raises:
        UserError: several tasks, none with a parent among them.
    """

    def __init__(self, config: ESCM2Config, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.links = [(task, parent) for task, parent in enumerate(self.parents) if parent is not None]
        """(task, parent) of the tasks with a parent."""
        # Buffers, for an index of Python numbers is copied to a GPU in every step, which the host waits for.
        self.linked: Tensor
        """The tasks with a parent [C]."""
        self.linked_parents: Tensor
        """Their parents [C]."""
        self.happened: Tensor
        """The label of the parent where they can happen, 1 or 0 [C]."""
        linked, parents = torch.tensor(self.links, dtype=torch.long).view(-1, 2).T
        self.register_buffer("linked", linked, persistent=False)
        self.register_buffer("linked_parents", parents, persistent=False)
        happened = torch.tensor([float(inputs.tasks[task].relation == "given") for task, _ in self.links])
        self.register_buffer("happened", happened, persistent=False)
        self.imputers = None
        if config.regularizer == "dr" and self.links:
            self.imputers = Towers(len(self.links), inputs.width, config.tower, config.dropout)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """Logits [B, T] and, in training, what the loss of the conditional probabilities reads; see the class."""
        conditional = self.conditional_logits(x)
        logits = self.compose_logits(conditional)
        if not self.training or not self.links:
            return logits
        outputs = [logits, conditional[:, self.linked]]
        if self.imputers is not None:
            outputs.append(F.softplus(self.imputers(x[SHARED])))
        return torch.cat(outputs, dim=1)
