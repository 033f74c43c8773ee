"""How far an event lies back, in classes that grow with the distance: histories of any length share few of them."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = 16
"""Distances below have a class each."""
BOUNDS = (*range(1, EXACT), *(round(EXACT * 2 ** (step / 2)) for step in range(17)))
"""First distance of every class but the first, which is distance 0: 1, 2, … 15, 16, 23, 32, 45, … 4096."""
CLASSES = len(BOUNDS) + 1


def distance_classes(distances: Tensor, most: int) -> Tensor:
    """The classes, 0 … CLASSES − 1, of distances.

    Args:
        distances: int64, any shape; negative ones count as 0.
        most: no distance is greater.
    """
    # Compared one by one: a tensor of the bounds would have to be copied to a GPU, and the host wait for it.
    every = torch.arange(most + 1, device=distances.device)
    classes = every.clamp(max=EXACT - 1)
    for bound in BOUNDS[EXACT - 1 :]:
        classes = classes + (every >= bound)
    return classes[distances.clamp(min=0)]


def distances_to_target(length: int, lengths: Tensor) -> Tensor:
    """Events from each of L items to the target, which follows the last one: int64 [B, L], 1 for the latest event."""
    return lengths.unsqueeze(1) - torch.arange(length, device=lengths.device)
