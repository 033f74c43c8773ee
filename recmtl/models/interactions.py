"""Crosses of fields: layers that multiply features with each other before any model reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recmtl.models.layers import side_by_side


class Crosses(nn.Module):
    """Base of the crosses: from x [n, B, width] of n table sets to [n, B, …].

    Attributes:
        columns: where each feature, and each cross, lies in what comes out.
        width: of what comes out.
    """

    columns: dict[str, slice]
    width: int


class CrossNet(Crosses):
    r"""The cross network of DCNv2, a network of its own for every table set.

    x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l, with W_l = U_l V_l of a rank, if one is given. With W and b of 0 it gives x.
    Depth l multiplies up to l + 1 features. Weights start uniform in ±1/√fan_in, biases at 0.

    Source: Wang et al., *DCN V2*, WWW 2021, section 3.2 (full matrices) and 3.4 (low rank, without its mixture).

    Args:
        count: number of table sets n.
        columns: where each feature lies in x.
        width: of x.
        layers: number of layers.
        rank: of W; 0: full matrices.

    Shape:
        input, output: [n, B, width].
    """

    def __init__(self, count: int, columns: Mapping[str, slice], width: int, layers: int, rank: int) -> None:
        super().__init__()
        self.columns, self.width = dict(columns), width
        shapes = [(width, rank), (rank, width)] if rank else [(width, width)]
        self.factors = nn.ParameterList(
            nn.Parameter(torch.empty(count, *shape)) for _ in range(layers) for shape in shapes
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(count, 1, width)) for _ in range(layers))
        self.low_rank = bool(rank)
        for factor in self.factors:
            bound = 1 / math.sqrt(factor.shape[1])
            nn.init.uniform_(factor, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's output; see the class for shapes."""
        factors, h = iter(self.factors), x
        for bias in self.biases:
            product = _product(h, next(factors)) if self.low_rank else h
            h = torch.addcmul(h, x, _product(product, next(factors), bias))
        return h


def _product(h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """H W + b of every table set, [n, B, out]."""
    if len(h) > 1:
        return torch.bmm(h, weight) if bias is None else torch.baddbmm(bias, h, weight)
    biases = [weight.new_zeros(1, 1, weight.shape[2]) if bias is None else bias]
    return side_by_side(h[0], [weight], biases)[0]


class Fields(Crosses):
    """Base of crosses that stand beside x and are made of the fields' embeddings: of those of one dimension each.

    Numeric features are no fields: they have no embeddings.

    Args:
        columns: where each feature lies in x.
        width: of x.
        fields: names of the features that have an embedding, in the order of their columns, before all others.
    """

    def __init__(self, columns: Mapping[str, slice], width: int, fields: list[str]) -> None:
        super().__init__()
        self.columns, self.width = dict(columns), width
        self.widths = [columns[name].stop - columns[name].start for name in fields]
        self.groups: dict[int, list[int]] = {}
        """By dimension, the places of its fields; two or more, or there is no pair."""
        for dim in dict.fromkeys(self.widths):
            places = [place for place, other in enumerate(self.widths) if other == dim]
            if len(places) > 1:
                self.groups[dim] = places
        self.embedded = sum(self.widths)

    def append(self, name: str, width: int) -> None:
        """Give a cross its columns."""
        self.columns[name] = slice(self.width, self.width + width)
        self.width += width

    def crosses(self, values: Tensor) -> Tensor:
        """What pairs of some fields give [n, B, …], from their embeddings [n, B, F, D]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The crosses beside x; see the class for shapes."""
        # One split: slices by themselves would each have a gradient of the size of x.
        fields = x[..., : self.embedded].split(self.widths, dim=-1)
        groups = [torch.stack([fields[place] for place in places], dim=-2) for places in self.groups.values()]
        return torch.cat([x, *(self.crosses(group) for group in groups)], dim=-1)


class FactorizationMachine(Fields):
    r"""The second-order term of a factorization machine, before its sum over the dimension.

    Σ_{i<j} v_i ⊙ v_j = ½ [(Σ_i v_i)² − Σ_i v_i²] [D] for the fields' embeddings v_i, one such vector for every
    dimension that two fields have. Its entries add up to Rendle's Σ_{i<j} ⟨v_i, v_j⟩ (every field's value is 1); before
    that sum the model weighs them itself (the bi-interaction of He and Chua, SIGIR 2017). A list is one field, pooled.

    Source: Rendle, *Factorization Machines*, ICDM 2010, section III.

    Shape:
        input: [n, B, width]; output: [n, B, width + ΣD].
    """

    def __init__(self, columns: Mapping[str, slice], width: int, fields: list[str]) -> None:
        super().__init__(columns, width, fields)
        for dim in self.groups:
            self.append(f"fm:{dim}", dim)

    def crosses(self, values: Tensor) -> Tensor:
        """[n, B, D]."""
        return 0.5 * (values.sum(-2).square() - values.square().sum(-2))


class DotProducts(Fields):
    r"""⟨v_i, v_j⟩ of every pair i < j of fields that have one dimension, each a column beside x.

    It tells the model how alike two embeddings are: of fields that share a table, such as an item and a history of
    items, whether one is among the other. A list is one field, pooled.

    Source: Naumov et al., *DLRM*, arXiv 1906.00091, section 2.1.3; Qu et al., *PNN*, ICDM 2016 (inner products).

    Shape:
        input: [n, B, width]; output: [n, B, width + P], P the number of pairs.
    """

    def __init__(self, columns: Mapping[str, slice], width: int, fields: list[str]) -> None:
        super().__init__(columns, width, fields)
        for dim, places in self.groups.items():
            count = len(places)
            first, second = torch.triu_indices(count, count, offset=1, device="cpu")
            for i, j in zip(first.tolist(), second.tolist(), strict=True):
                self.append("dot:" + ":".join(sorted((fields[places[i]], fields[places[j]]))), 1)
            self.register_buffer(f"pairs_{dim}", first * count + second, persistent=False)

    def crosses(self, values: Tensor) -> Tensor:
        """[n, B, pairs]."""
        products = torch.matmul(values, values.transpose(-1, -2)).flatten(-2)
        pairs: Tensor = getattr(self, f"pairs_{values.shape[-1]}")
        return products.index_select(-1, pairs)
