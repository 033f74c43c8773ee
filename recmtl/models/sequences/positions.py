"""How far an event lies back, in classes that grow with the distance: histories of any length share few of them."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = 16
"""Distances below have a class each."""
BOUNDS = (*range(1, EXACT), *(round(EXACT * 2 ** (step / 2)) for step in range(17)))
"""First distance of every class but the first, which is distance 0: 1, 2, … 15, 16, 23, 32, 45, … 4096."""
CLASSES = len(BOUNDS) + 1


def distance_classes(distances: Tensor) -> Tensor:
    """The classes, 0 … CLASSES − 1, of distances, int64, any shape; negative ones count as 0."""
    return torch.bucketize(distances, torch.tensor(BOUNDS, device=distances.device), right=True)


def distances_to_target(length: int, lengths: Tensor) -> Tensor:
    """Events from each of L items to the target, which follows the last one: int64 [B, L], 1 for the latest event."""
    return lengths.unsqueeze(1) - torch.arange(length, device=lengths.device)
