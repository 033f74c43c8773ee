"""What a run that starts from another one begins with: a checkpoint before its first step, on any number of ranks.

As a script, `python started.py DATA RUN0 RUN CHANGES` is one rank of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from jobs import free_port
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from recmtl.config import load_run_config, to_toml
from recmtl.distributed.context import process_group
from recmtl.runtime.storage import write_whole
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.checkpoint_folder import best_checkpoint
from recmtl.training.runs import open_dataset, open_start
from recmtl.training.saving import CheckpointWriter
from recmtl.training.session import TrainSession
from recmtl.training.start import start_from
from recmtl.training.storage import SafePlanner, SafeReader


def begin(data: Path, before: Path, run: Path, **changes: dict[str, Any]) -> None:
    """Start `run` on `data` from the run `before`, with its configuration but for some sections' keys; save at once."""
    config = load_run_config(before)
    config = replace(config, **{name: replace(getattr(config, name), **keys) for name, keys in changes.items()})
    with process_group("cpu") as context:
        dataset, tasks = open_dataset(data, config)
        start = open_start(before, run, context)
        assert start is not None
        start.check(config, data, dataset, tasks)
        session = TrainSession(config, data, dataset, tasks, context)
        checkpoints = Checkpoints(run / "checkpoints", session)
        with CheckpointWriter(checkpoints.folder, session, on_failure=lambda: None) as writer:
            writer.save(start_from(start, session, checkpoints))
        if context.is_first:
            write_whole(run / "config.toml", to_toml(config))
            write_whole(run / "plan.json", json.dumps(session.plan.to_json()))
            dataset.save(run)


def begin_on_two_ranks(data: Path, before: Path, run: Path, **changes: dict[str, Any]) -> None:
    """As `begin`, in two processes."""
    port = str(free_port())
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    words = [str(word) for word in (data, before, run, json.dumps(changes))]
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, *words],
            env={**os.environ, **world, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said


def tensors(run: Path, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
    """All that a run's best checkpoint, or another one, holds, whole, but for states of random generators."""
    reader = SafeReader(checkpoint or best_checkpoint(run))
    described = reader.read_metadata().state_dict_metadata
    found = {
        name: torch.zeros(stored.size, dtype=stored.properties.dtype)
        for name, stored in described.items()
        if isinstance(stored, TensorStorageMetadata) and not name.startswith("random")
    }
    dcp.load(dict(found), storage_reader=reader, planner=SafePlanner(), no_dist=True)
    return found


if __name__ == "__main__":
    begin(*map(Path, sys.argv[1:4]), **json.loads(sys.argv[4]))
