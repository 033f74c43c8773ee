"""What a run comes to: the fields of its JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recmtl.distributed.context import DistContext
from recmtl.training.session import TrainSession

RESULTS = "results.json"
Results = dict[str, Any]


def describe(session: TrainSession) -> Results:
    """The fields of ``results.json`` that say what ran where."""
    return {
        "model": session.config.model.name,
        "dataset": session.dataset.name,
        "data_fingerprint": session.dataset.data_fingerprint,
        "encoding_fingerprint": session.dataset.encoding_fingerprint,
        "world_size": session.context.world_size,
        "device": session.context.device.type,
        "seed": session.config.training.seed,
    }


def peak_resident() -> int:
    """Largest resident memory of this process so far, bytes. `getrusage` also counts what its parent held."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def peak_memory(context: DistContext) -> dict[str, int | None]:
    """Peak bytes of the rank that needed most: of the GPU's allocator, and resident on the host."""
    host = peak_resident()
    device = torch.cuda.max_memory_allocated() if context.device.type == "cuda" else None
    return {"device": None if device is None else int(context.max(device)), "host": int(context.max(host))}
