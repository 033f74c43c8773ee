"""Numbers that a rank hands to the process group in a step, as PyTorch's profiler sees them.

As a script, `python exchanged.py DATA BATCH_SIZE PLACEMENT` is one rank; the first one prints the sums over the ranks.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch
from jobs import free_port

from recmtl.config import load_config
from recmtl.distributed.context import process_group
from recmtl.schema import Dataset
from recmtl.training.session import TrainSession

STEPS = 4
COLLECTIVES = ("all_to_all", "all_reduce")


def exchanged(data: Path, batch_size: int, placement: str, ranks: int = 2) -> dict[str, float]:
    """Numbers a step by kind of collective, summed over all ranks, and under `tables` what is replicated."""
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost"}
    world |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(data), str(batch_size), placement],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, said
    found: dict[str, float] = json.loads(said[0][0].splitlines()[-1])
    return found


def count(data: Path, batch_size: int, placement: str) -> None:
    """Train some steps under the profiler."""
    config = load_config("mmoe")
    config.training.batch_size, config.training.device = batch_size, "cpu"
    config.embedding.placement = placement  # type: ignore[assignment]
    config.embedding.replica_gain_mib = 0
    dataset = Dataset.load(data)
    with process_group("cpu") as context:
        session = TrainSession(config, data, dataset, dataset.tasks, context)
        session.draw_tables()
        batches = itertools.cycle([next(session.readers["train"].batches())])
        for _ in range(3):
            session.run_batch(batches)
        context.barrier()
        with torch.profiler.profile(record_shapes=True) as profiler:
            for _ in range(STEPS):
                session.run_batch(batches)
        found = dict.fromkeys(COLLECTIVES, 0.0)
        for event in profiler.events():
            kind = event.name.removeprefix("gloo:")
            if event.name != kind and kind in found:
                found[kind] += sum(math.prod(shape) for shape in event.input_shapes) / STEPS
        sums = context.gather(lambda: found)
        types = session.plan.table_types()
        replicated = [table for table, kind in types.items() if kind == "data_parallel"]
        if context.is_first:
            total = {kind: sum(part[kind] for part in sums) for kind in COLLECTIVES}
            print(json.dumps({**total, "tables": replicated}))


if __name__ == "__main__":
    count(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
