"""What a run comes to: the fields of its JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recmtl.distributed.ranks import Ranks
from recmtl.training.engine import Engine

RESULTS = "results.json"
Results = dict[str, Any]


def describe(engine: Engine) -> Results:
    """The fields of ``results.json`` that say what ran where."""
    return {
        "model": engine.config.model.name,
        "dataset": engine.dataset.name,
        "data_fingerprint": engine.dataset.data_fingerprint,
        "encoding_fingerprint": engine.dataset.encoding_fingerprint,
        "world_size": engine.ranks.world_size,
        "device": engine.ranks.device.type,
        "seed": engine.config.training.seed,
    }


def peak_resident() -> int:
    """Largest resident memory of this process so far, bytes. `getrusage` also counts what its parent held."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def peak_memory(ranks: Ranks) -> dict[str, int | None]:
    """Peak bytes of the rank that needed most: of the GPU's allocator, and resident on the host."""
    host = peak_resident()
    device = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else None
    return {"device": None if device is None else int(ranks.max(device)), "host": int(ranks.max(host))}
