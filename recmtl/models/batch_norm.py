"""Batch normalisation of parallel networks, over the whole global batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.runtime.collectives import sum_over_ranks


class BatchNorm(nn.Module):
    r"""y = γ (z − μ)/√(σ² + ε) + β for every unit of n parallel networks (Ioffe and Szegedy, ICML 2015).

    μ and σ² are mean and (biased) variance over the rows of the global batch, whichever ranks they lie on: losses are
    the same on 1 rank and on 8. That costs two small all-reduces forward and two backward. In evaluation they are the
    running means of the training batches' μ and unbiased σ². A batch moves those by momentum · rows/(most rows so far):
    the last one of an epoch, right before validation, may have few.

    Padding must not be among the rows. γ starts at 1, β at 0. Float32 under autocast.

    Args:
        count: number of networks n.
        features: units of each H.
        momentum: share of a full batch in the running means, PyTorch's 0.1.
        eps: ε, PyTorch's 1e-5.

    Shape:
        input: [n, B, H]; output: [n, B, H].
    """

    mean: Tensor
    variance: Tensor
    most_rows: Tensor

    def __init__(self, count: int, features: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.scale = nn.Parameter(torch.ones(count, 1, features))
        self.shift = nn.Parameter(torch.zeros(count, 1, features))
        self.register_buffer("mean", torch.zeros(count, 1, features))
        self.register_buffer("variance", torch.ones(count, 1, features))
        self.register_buffer("most_rows", torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        """Normalise; see the class for shapes."""
        z = z.float() if z.dtype == torch.bfloat16 else z
        if not self.training:
            return self._scaled(z - self.mean, self.variance)
        sums = sum_over_ranks(F.pad(z.sum(1, keepdim=True), (0, 1), value=z.shape[1]))
        rows = sums[0, 0, -1].detach()
        mean = sums[..., :-1] / rows
        centred = z - mean
        variance = sum_over_ranks(centred.square().sum(1, keepdim=True)) / rows
        self._remember(mean.detach(), variance.detach(), rows)
        return self._scaled(centred, variance)

    def _scaled(self, centred: Tensor, variance: Tensor) -> Tensor:
        return torch.addcmul(self.shift, centred, self.scale * torch.rsqrt(variance + self.eps))

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, rows: Tensor) -> None:
        self.most_rows.copy_(torch.maximum(self.most_rows, rows))
        share = self.momentum * rows / self.most_rows
        self.mean.lerp_(mean, share)
        self.variance.lerp_(variance * rows / (rows - 1).clamp(min=1), share)
