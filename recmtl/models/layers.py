"""Layers the models share. Everything that several parallel networks do on one input is one batched matmul."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn


class MLPs(nn.Module):
    r"""`count` multilayer perceptrons of equal shape, side by side.

    Network i computes h_{l+1} = dropout(relu(h_l W_{i,l} + b_{i,l})) through `hidden` and, when `out_features`
    is given, a last layer without activation. W and b start uniform in ±1/√fan_in, as `nn.Linear`'s do.

    Args:
        count: number of networks n.
        in_features: input width.
        hidden: widths of the hidden layers.
        out_features: width of a last, linear layer; None: none.
        dropout: probability of dropping a hidden unit.
        precise_output: compute that last layer in the precision of its weights, under autocast too.

    Shape:
        input: [B, in] (all networks read the same) or [n, B, in] or, with `sizes`, a tensor [B, in] for each group of
        networks; output: [n, B, out].

    Example::

        experts = MLPs(4, 576, (128, 128))
        experts(torch.rand(32, 576)).shape  # [4, 32, 128]
    """

    def __init__(
        self,
        count: int,
        in_features: int,
        hidden: Sequence[int],
        out_features: int | None = None,
        dropout: float = 0.0,
        precise_output: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden, *(() if out_features is None else (out_features,))]
        self.count = count
        self.activations = len(hidden)
        self.precise_output = precise_output
        self.in_widths = tuple(widths[:-1])
        self.out_features = widths[-1]
        self.weights = nn.ParameterList(torch.empty(count, m, n) for m, n in pairwise(widths))
        self.biases = nn.ParameterList(torch.empty(count, 1, n) for n in widths[1:])
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: Tensor | Sequence[Tensor], sizes: Sequence[int] = (), scales: Sequence[Tensor] = ()) -> Tensor:
        """Apply every network; see the class for shapes.

        Args:
            x: what the networks read.
            sizes: number of networks in each group, where groups read different inputs.
            scales: what each layer's input is multiplied by, [n, B, ·] a layer (`in_widths`); none: nothing.
        """
        if not self.weights:
            assert isinstance(x, Tensor)
            return x if x.dim() == 3 else x.expand(self.count, *x.shape)
        weight, bias = self.weights[0], self.biases[0]
        if not isinstance(x, Tensor):
            groups = zip(x, weight.split(list(sizes)), bias.split(list(sizes)), strict=True)
            return self.finish(torch.cat([side_by_side(one, [w], [b])[0] for one, w, b in groups]))
        return self.finish(self.product(0, x, scales), scales)

    def finish(self, h: Tensor, scales: Sequence[Tensor] = ()) -> Tensor:
        """The outputs from x W_{i,0} + b_{i,0} [n, B, ·], the first layer before its activation."""
        for layer in range(len(self.weights)):
            if layer:
                h = self.product(layer, h, scales)
            h = self.activate(layer, h)
        return h

    def activate(self, layer: int, h: Tensor) -> Tensor:
        """The output of a layer from its product: a hidden one's is rectified and dropped out, the last one's stays."""
        return self.dropout(torch.relu(h)) if layer < self.activations else h

    def product(self, layer: int, h: Tensor, scales: Sequence[Tensor] = ()) -> Tensor:
        """H W_{i,l} + b_{i,l} of every network [n, B, ·], from h [B, ·] or [n, B, ·] times its scales."""
        weight, bias = self.weights[layer], self.biases[layer]
        scale = scales[layer] if scales else None
        if not (self.precise_output and layer == self.activations):
            return _scaled_product(h, scale, weight, bias)
        with no_autocast(h.device):
            scale = None if scale is None else scale.to(weight.dtype)
            return _scaled_product(h.to(weight.dtype), scale, weight, bias)


def _scaled_product(h: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    if scale is not None:
        h = h * scale
    return side_by_side(h, [weight], [bias])[0] if h.dim() == 2 else torch.baddbmm(bias, h, weight)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast changes no types; PyTorch has none for the meta device."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


ALIGNMENT, LEAST = 8, 16
"""The columns of a product are a multiple of the first, and no fewer than the second: on a CPU 131 take half as long
again as 128 or 136 and 3 longer than 16, and tensor cores of GPUs want multiples of 8."""


def side_by_side(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """The products x W_i + b_i of all networks that read one x, as one wide product that reads x once.

    Args:
        x: [B, in].
        weights: for every group of n networks of one shape, [n, in, out]; n and out differ between groups.
        biases: for every group, [n, 1, out].

    Returns:
        [n, B, out] for every group.
    """
    # One network's weights are columns as they are; transposed, their gradient would have other strides than they have.
    columns = [w.flatten(0, 1) if len(w) == 1 else w.transpose(0, 1).flatten(1) for w in weights]
    widths = [column.shape[1] for column in columns]
    total = sum(widths)
    padding = max(LEAST, -(-total // ALIGNMENT) * ALIGNMENT) - total
    if padding:
        widths.append(padding)
        columns.append(x.new_zeros(x.shape[1], padding))
    wide = columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)
    bias = torch.cat([*(bias.flatten() for bias in biases), x.new_zeros(padding)])
    products = torch.addmm(bias, x, wide)
    parts = products.split(widths, dim=1) if len(widths) > 1 else [products]
    return [part.unflatten(1, (len(w), -1)).transpose(0, 1) for part, w in zip(parts, weights, strict=False)]


class Gates(nn.Module):
    r"""`count` softmax gates over `choices` alternatives: g_i(x) = softmax(W_i x), W_i a linear layer or an MLP.

    Args:
        count: number of gates n.
        in_features: input width.
        choices: number of alternatives K.
        hidden: hidden widths of the gate MLPs; none: the linear gate of the papers.

    Shape:
        input: [B, in] or [n, B, in]; output: [n, B, K], summing to 1 over K.
    """

    def __init__(self, count: int, in_features: int, choices: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.logits = MLPs(count, in_features, hidden, choices)

    def forward(self, x: Tensor) -> Tensor:
        """Apply every gate; see the class for shapes."""
        return torch.softmax(self.logits(x), dim=-1)


SMALL_PRODUCT = 400
"""On a CPU, PyTorch multiplies batched matrices with fewer multiplications each in a scalar loop, five times slower. On
a GPU it has a kernel for them, where a loop over experts would start many."""


def mix(gates: Tensor, experts: Tensor) -> Tensor:
    """Gated sums of experts: z_i = Σ_k g_{i,k} e_k.

    Args:
        gates: [n, B, K].
        experts: [K, B, H].

    Returns:
        [n, B, H].
    """
    if gates.device.type != "cuda" and gates.shape[0] * experts.shape[0] * experts.shape[2] < SMALL_PRODUCT:
        z = gates[..., :1] * experts[0]
        for k in range(1, len(experts)):
            z = torch.addcmul(z, gates[..., k : k + 1], experts[k])
        return z
    # [B, n, K] @ [B, K, H]
    return torch.matmul(gates.transpose(0, 1), experts.transpose(0, 1)).transpose(0, 1)


class Towers(nn.Module):
    """One MLP a task that ends in one logit.

    Under bfloat16 autocast the last layer stays float32, and so do the logits: with eight bits of mantissa thousands of
    rows would share a few hundred logits, and rank by chance within each.

    Args:
        tasks: number of tasks T.
        in_features: input width.
        hidden: hidden widths.
        dropout: probability of dropping a hidden unit.

    Shape:
        input: [B, in] (all tasks read the same) or [T, B, in]; output: logits [B, T].
    """

    def __init__(self, tasks: int, in_features: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.mlps = MLPs(tasks, in_features, hidden, 1, dropout, precise_output=True)

    def forward(self, x: Tensor, scales: Sequence[Tensor] = ()) -> Tensor:
        """Apply every tower; see the class for shapes, and `MLPs` for scales."""
        return self.mlps(x, scales=scales).squeeze(-1).t()
