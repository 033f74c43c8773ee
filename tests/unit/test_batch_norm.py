"""Batch normalisation of parallel networks: PyTorch's for each of them, and the same on one rank and on two."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recmtl.models.batch_norm import BatchNorm

COUNT, FEATURES = 3, 5


def batch(rows: int, seed: int = 0) -> Tensor:
    """Every unit of every network with a mean and a spread of its own, far from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(COUNT, rows, FEATURES, generator=generator, dtype=torch.float64)
    units = torch.arange(COUNT * FEATURES, dtype=torch.float64).reshape(COUNT, 1, FEATURES)
    return values * (1 + units) + 10 * units


def norm_with_weights() -> BatchNorm:
    torch.manual_seed(0)
    norm = BatchNorm(COUNT, FEATURES).double()
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.shift)
    return norm


def pytorchs(norm: BatchNorm) -> list[nn.BatchNorm1d]:
    references = [nn.BatchNorm1d(FEATURES).double() for _ in range(COUNT)]
    for i, reference in enumerate(references):
        reference.weight.data.copy_(norm.scale[i, 0])
        reference.bias.data.copy_(norm.shift[i, 0])
    return references


def test_it_is_pytorchs_for_every_network():
    norm = norm_with_weights()
    references = pytorchs(norm)
    for seed in range(3):
        z = batch(9, seed).requires_grad_()
        z_reference = z.detach().clone().requires_grad_()
        y = norm(z)
        wanted = torch.stack([reference(one) for reference, one in zip(references, z_reference, strict=True)])
        torch.testing.assert_close(y, wanted)
        weights = torch.randn(y.shape, dtype=torch.float64)
        norm.zero_grad()
        (y * weights).sum().backward()
        for reference in references:
            reference.zero_grad()
        (wanted * weights).sum().backward()
        torch.testing.assert_close(z.grad, z_reference.grad)
        torch.testing.assert_close(norm.scale.grad[:, 0], torch.stack([r.weight.grad for r in references]))
        torch.testing.assert_close(norm.shift.grad[:, 0], torch.stack([r.bias.grad for r in references]))
    torch.testing.assert_close(norm.mean[:, 0], torch.stack([r.running_mean for r in references]))
    torch.testing.assert_close(norm.variance[:, 0], torch.stack([r.running_var for r in references]))

    norm.eval()
    for reference in references:
        reference.eval()
    z = batch(4, seed=9)
    torch.testing.assert_close(norm(z), torch.stack([r(one) for r, one in zip(references, z, strict=True)]))


def test_evaluation_changes_nothing_and_takes_rows_one_by_one():
    norm = norm_with_weights()
    norm(batch(9))
    norm.eval()
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    z = batch(4, seed=1)
    torch.testing.assert_close(norm(z), torch.cat([norm(row) for row in z.split(1, dim=1)], dim=1))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_a_short_batch_moves_the_running_means_less():
    """By momentum · rows/(most rows so far), from the first full one on."""
    norm = BatchNorm(COUNT, FEATURES).double()
    first, second = batch(10), batch(2, seed=1)
    norm(first)
    norm(second)
    mean = 0.1 * first.mean(1, keepdim=True)
    variance = 0.9 + 0.1 * first.var(1, keepdim=True)
    share = 0.1 * 2 / 10
    torch.testing.assert_close(norm.mean, mean.lerp(second.mean(1, keepdim=True), share))
    torch.testing.assert_close(norm.variance, variance.lerp(second.var(1, keepdim=True), share))


def test_a_batch_of_one_row_is_all_shift():
    norm = norm_with_weights()
    y = norm(batch(1).requires_grad_())
    torch.testing.assert_close(y, norm.shift.expand_as(y))
    y.sum().backward()
    assert norm.variance.isfinite().all()


def test_statistics_are_float32_under_autocast():
    norm, z = BatchNorm(COUNT, FEATURES), batch(9).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = z.bfloat16()
        y = norm(rounded)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, BatchNorm(COUNT, FEATURES)(rounded.float()))


ROWS = ([7, 2], [4, 0])
"""Rows of each rank, in two batches: different numbers, and none."""


def train_on(rank: int, folder: Path) -> None:
    """What one of two ranks sees: outputs, gradients, running means."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm = norm_with_weights()
    results = []
    for seed, rows in enumerate(ROWS):
        z = list(batch(sum(rows), seed).split(rows, dim=1))[rank].clone().requires_grad_()
        y = norm(z)
        weights = list(batch(sum(rows), seed + 10).split(rows, dim=1))[rank]
        norm.zero_grad()
        (y * weights).sum().backward()
        results.append((y.detach(), z.grad, norm.scale.grad.clone(), norm.shift.grad.clone()))
    torch.save((results, norm.state_dict()), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_are_one(tmp_path):
    torch.multiprocessing.spawn(train_on, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    norm = norm_with_weights()
    for seed, rows in enumerate(ROWS):
        z = batch(sum(rows), seed).requires_grad_()
        y = norm(z)
        norm.zero_grad()
        (y * batch(sum(rows), seed + 10)).sum().backward()
        parts = [results[seed] for results, _ in ranks]
        torch.testing.assert_close(torch.cat([part[0] for part in parts], dim=1), y)
        torch.testing.assert_close(torch.cat([part[1] for part in parts], dim=1), z.grad)
        torch.testing.assert_close(parts[0][2] + parts[1][2], norm.scale.grad)
        torch.testing.assert_close(parts[0][3] + parts[1][3], norm.shift.grad)
    for _, state in ranks:
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(state[key], value)
