"""What is done to x before any model reads it: dropout of embeddings, normalisation, crosses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.config import InteractionConfig
from recmtl.errors import UserError
from recmtl.models.batch_norm import BatchNorm
from recmtl.models.interactions import Crosses, CrossNet, DotProducts, FactorizationMachine


class LayerNorm(nn.Module):
    r"""y = γ (x − μ)/√(σ² + ε) + β over the columns of a row (Ba et al., 2016), γ and β of every table set's own.

    Numeric features and embeddings are normalised together. γ starts at 1, β at 0. Float32 under autocast.

    Args:
        count: number of table sets n.
        width: of x.
        eps: ε, PyTorch's 1e-5.

    Shape:
        input, output: [n, B, width].
    """

    def __init__(self, count: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(count, 1, width))
        self.shift = nn.Parameter(torch.zeros(count, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; see the class for shapes."""
        return torch.addcmul(self.shift, F.layer_norm(x, x.shape[-1:], eps=self.eps), self.scale)


class InputLayers(nn.Module):
    r"""x ── dropout of embeddings ── normalisation ── crosses ── the model, each where the configuration has it.

    Dropout: e ⊙ m / (1 − p) in training, m drawn 1 with the probability 1 − p for every number of a pooled embedding
    (Srivastava et al., JMLR 2014); numeric features stay. Normalisation: `BatchNorm` or `LayerNorm`. Crosses: see
    `recmtl.models.interactions`. Every table set is treated by itself, with parameters of its own, so that a task's own
    tables stay its own.

    Args:
        config: the `interaction` section of the configuration.
        dropout: of embeddings, p.
        table_sets: names of the table sets.
        columns: where each feature lies in x, those with embeddings first.
        width: of x.
        numeric: how many of its last columns are numeric features.

    Shape:
        input: [B, width] of every table set; output: [B, `width`], features and crosses at `columns`.

    Raises:
        UserError: there are no two fields to cross.
    """

    def __init__(
        self,
        config: InteractionConfig,
        dropout: float,
        table_sets: Sequence[str],
        columns: Mapping[str, slice],
        width: int,
        numeric: int,
    ) -> None:
        super().__init__()
        self.table_sets, self.dropout, self.embedded = tuple(table_sets), dropout, width - numeric
        count, normalisations = len(self.table_sets), {"batch": BatchNorm, "layer": LayerNorm}
        self.norm = None if config.normalization == "none" else normalisations[config.normalization](count, width)
        self.cross = _crosses(config, count, columns, width, self.embedded)
        self.columns = columns if self.cross is None else self.cross.columns
        self.width = width if self.cross is None else self.cross.width

    @property
    def change_nothing(self) -> bool:
        """Whether the configuration has none of them."""
        return not self.dropout and self.norm is None and self.cross is None

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the model reads; see the class for shapes."""
        values = [self._drop(x[table_set]) for table_set in self.table_sets]
        h = torch.stack(values) if len(values) > 1 else values[0].unsqueeze(0)
        for layer in (self.norm, self.cross):
            h = h if layer is None else layer(h)
        return dict(zip(self.table_sets, h, strict=True))

    def _drop(self, x: Tensor) -> Tensor:
        if not (self.training and self.dropout):
            return x
        embedded, numeric = x.split([self.embedded, x.shape[1] - self.embedded], dim=1)
        return torch.cat([F.dropout(embedded, self.dropout), numeric], dim=1)


def _crosses(
    config: InteractionConfig, count: int, columns: Mapping[str, slice], width: int, embedded: int
) -> Crosses | None:
    if config.kind == "none":
        return None
    if config.kind == "dcn":
        return CrossNet(count, columns, width, config.layers, config.rank)
    fields = [name for name, place in columns.items() if place.stop <= embedded]
    cls = FactorizationMachine if config.kind == "fm" else DotProducts
    crosses = cls(columns, width, fields)
    if not crosses.groups:
        raise UserError(
            f"interaction.kind: {config.kind} crosses embeddings of one dimension, and no two features have such; "
            "choose dcn or none"
        )
    return crosses
