"""CGC: experts of each task's own beside shared ones (Tang et al., RecSys 2020, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from recmtl.config.models import CGCConfig
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.gated_experts import GatedExperts
from recmtl.models.layers import Towers


def stack(
    config: CGCConfig,
    levels: int,
    width: int,
    sees: Sequence[Sequence[int]],
    reads: Sequence[Sequence[int]],
    trains: Sequence[Sequence[int]] | None = None,
) -> nn.ModuleList:
    """Levels of gated experts on top of each other, all of the same sizes and wiring.

    Groups of experts are one a task, then the shared one; so are gates. The last level has no shared gate, as nothing
    reads what it would mix.

    Args:
        config: sizes.
        levels: number of levels.
        width: what the first level reads.
        sees: for every gate, the groups whose experts it mixes.
        reads: for every gate, the groups whose inputs it reads the sum of.
        trains: for every gate, the groups it trains; none: all it sees.
    """
    tasks = len(sees) - 1
    experts = [config.task_experts] * tasks + [config.shared_experts]
    stacked = nn.ModuleList()
    for level in range(levels):
        gates = tasks if level == levels - 1 else tasks + 1
        wiring = (experts, sees[:gates], reads[:gates])
        trained = trains and trains[:gates]
        stacked.append(GatedExperts(*wiring, width, config.expert_widths, config.gate, config.dropout, trained))
        width = config.expert_widths[-1]
    return stacked


class CGC(Model):
    r"""Customized gate control: PLE with one level (section 4.1).

    z_t = softmax(W_t x)·[own experts of t (x); shared experts(x)] [B, H]; logit_t = tower_t(z_t).
    """

    def __init__(self, config: CGCConfig, inputs: Inputs, levels: int = 1) -> None:
        super().__init__(config, inputs)
        tasks = len(inputs.tasks)
        # The shared gate sees every group. A gate reads what its own group reads.
        sees = [*([task, tasks] for task in range(tasks)), list(range(tasks + 1))]
        reads = [[group] for group in range(tasks + 1)]
        self.levels = stack(config, levels, inputs.width, sees, reads)
        self.towers = Towers(tasks, config.expert_widths[-1], config.tower, config.dropout)

    def task_representations(self, x: dict[str, Tensor]) -> Tensor:
        """The last level's z [T, B, H]."""
        h = x[SHARED]
        for level in self.levels:
            h = level(h)
        return h
