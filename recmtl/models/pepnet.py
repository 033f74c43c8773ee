"""PEPNet: another model, personalised by gates on its features and its towers (Chang et al., KDD 2023, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recmtl.config.models import PEPNetConfig, find_model
from recmtl.errors import UserError
from recmtl.models.base import SHARED, Inputs, Model
from recmtl.models.layers import MLPs
from recmtl.schema import Task


class GateNU(nn.Module):
    r"""Gate neural units (section 3.2): δ_i = 2σ(MLP_i(x)), between 0 and 2, and 1 where the MLP gives 0.

    Args:
        count: number of gates n.
        in_features: input width.
        hidden: hidden widths of the MLP; the paper has one hidden layer.
        out_features: how many values one gate scales.

    Shape:
        input: [B, in] or [n, B, in]; output: [n, B, out].
    """

    def __init__(self, count: int, in_features: int, hidden: Sequence[int], out_features: int) -> None:
        super().__init__()
        self.mlps = MLPs(count, in_features, hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Apply every gate; see the class for shapes."""
        return 2 * torch.sigmoid(self.mlps(x))


class PEPNet(Model):
    r"""Gates around a backbone: EPNet scales the embeddings it reads, PPNet what each layer of its towers reads.

    EPNet, for every table set E [B, width] of the backbone (one, but for models with tables of tasks' own):
        O = E ⊗ 2σ(MLP[domain features of E; sg(E)]), and the backbone reads O in place of E.
    PPNet, for layer l of the tower of task t, which reads H_{t,l} (H_{t,1} is what the backbone hands to the tower):
        H_{t,l+1} = relu((H_{t,l} ⊗ δ_{t,l}) W_{t,l} + b_{t,l}), the last layer without relu;
        [δ_{1,l}; …; δ_{T,l}] = 2σ(MLP_l[prior features of E; sg(O)]), with the shared set's E and O.
    sg is the stop-gradient: gates do not train what they merely look at. Features lie in E as embeddings, numeric ones
    as their values. With gates whose weights are 0 it is the backbone.

    Interpretations: the paper's domain and prior features are sides of Kuaishou's data; here you name them, and all
    features stand in where you name none. Its backbone is T towers right on O (`shared_bottom` with `bottom` empty).
    The paper speaks of gating the hidden units of the tower; here δ also scales what enters its first layer, so that a
    tower that is one linear layer has a gate too.

    Raises:
        UserError: a feature isn't there, or the backbone's sizes are another model's.
    """

    def __init__(self, config: PEPNetConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        name, tasks = config.backbone.name, inputs.tasks
        backbone = find_model(name, "model.backbone.name")
        if type(config.backbone) is not backbone.config:
            raise UserError(f"model.backbone.name: {name} has other sizes; name it in a TOML file, [model.backbone]")
        self.backbone: Model = backbone.load()(config.backbone, inputs)
        self.sets = self.backbone.table_sets(config.backbone, tasks)
        self.prior = self._places("prior")
        self.domain = self._places("domain") if config.domain else self.prior
        width = inputs.width
        self.epnet = GateNU(len(self.sets), _width(self.domain) + width, config.gate, width)
        self.ppnet = nn.ModuleList(
            GateNU(1, _width(self.prior) + width, config.gate, len(tasks) * out)
            for out in self.backbone.towers.mlps.in_widths
        )

    @classmethod
    def table_sets(cls, config: PEPNetConfig, tasks: tuple[Task, ...]) -> tuple[str, ...]:
        """The backbone's."""
        return find_model(config.backbone.name).load().table_sets(config.backbone, tasks)

    def conditional_logits(self, x: dict[str, Tensor]) -> Tensor:
        """Logits [B, T] of the backbone's towers, gated."""
        embeddings = torch.stack([x[table_set] for table_set in self.sets])
        gated = embeddings * self.epnet(_beside(embeddings, self.domain, embeddings))
        shared = self.sets.index(SHARED)
        read = _beside(embeddings[shared], self.prior, gated[shared])
        tasks = len(self.inputs.tasks)
        scales = [gate(read).squeeze(0).unflatten(1, (tasks, -1)).transpose(0, 1) for gate in self.ppnet]
        h = self.backbone.task_representations(dict(zip(self.sets, gated, strict=True)))
        return self.backbone.towers(h, scales)

    @property
    def composes(self) -> bool:
        """Whether the backbone does."""
        return self.backbone.composes

    def compose_logits(self, logits: Tensor) -> Tensor:
        """As the backbone does."""
        return self.backbone.compose_logits(logits)

    def _places(self, key: str) -> list[slice]:
        """Where the features that `key` names lie in x; all of x if it names none."""
        columns, names = self.inputs.columns, getattr(self.config, key)
        for name in names:
            if name not in columns:
                raise UserError(f"model.{key}: no feature '{name}'; the data has {', '.join(columns)}")
        return [columns[name] for name in names] or [slice(0, self.inputs.width)]


def _width(places: Sequence[slice]) -> int:
    return sum(place.stop - place.start for place in places)


def _beside(x: Tensor, places: Sequence[slice], looked_at: Tensor) -> Tensor:
    """Pieces of x [..., width], beside all of `looked_at` behind a stop-gradient."""
    return torch.cat([*(x[..., place] for place in places), looked_at.detach()], dim=-1)
