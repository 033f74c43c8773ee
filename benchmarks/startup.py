"""How long a run takes until its first step: new, resumed, measured, and scored with.

    python benchmarks/startup.py --embedding-rows 4000000 --dim 32 --ranks 1 2

Every case runs in processes of its own, which have imported everything before the clock starts. Reading Parquet and the
first step are left out: what is timed ends when the model is sharded and has its weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from common import RESULTS, machine, markdown_table, write_results
from device import peak_bytes
from variants import configure, names
from workload import write_workload

from recmtl.config import Config, load_run_config
from recmtl.distributed.context import DistContext, process_group
from recmtl.schema import Dataset
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.checkpoint_folder import best_checkpoint
from recmtl.training.runs import open_evaluated, train
from recmtl.training.scorer import RunScorer
from recmtl.training.session import TrainSession
from recmtl.training.trained import TrainedRun
from recmtl.training.trainer import Trainer

CASES = ("new", "resume", "evaluate", "predict")


@dataclass
class Options:
    """Measure starts."""

    variant: tyro.conf.Positional[str] = "merrec_mmoe"
    """A preset or TOML file, with settings of its own or none: `NAME:key=value:key=value`."""
    embedding_rows: int = 4_000_000
    """Rows of all embedding tables together."""
    dim: int = 32
    """Embedding dimension."""
    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks on this machine."""
    rounds: int = 3
    """Turns; medians are reported."""
    device: str = "auto"
    """auto, cpu or cuda."""
    case: str = ""
    """Time this one alone, in this process; for the script itself."""
    work: Path | None = None
    """Folder for data and run; none: one that is removed."""
    out: Path = RESULTS
    """Folder for the results."""


class WithoutEncoder(TrainedRun):
    """A run of data that no recipe made: loading its model needs neither recipe nor encoder."""

    recipe: Any = None
    encoder: Any = None


def start(case: str, data: Path, run: Path, new: Path, config: Config, context: DistContext) -> object:
    """Bring a model to where its first step could begin."""
    if case == "predict":
        return RunScorer(WithoutEncoder(run), context)
    if case == "evaluate":
        dataset, trained, tasks = open_evaluated(data, run, config)
        session = TrainSession(config, data, dataset, tasks, context, measure=("test",), trained=trained)
        Checkpoints(run / "checkpoints", session).load_whole(best_checkpoint(run))
        return session
    dataset = Dataset.load(data)
    session = TrainSession(config, data, dataset, dataset.tasks, context)
    trainer = Trainer(session, new if case == "new" else run)
    trainer._resume()
    return trainer


def time_case(options: Options) -> None:
    """Time one start; every rank prints a line, the first one what the script reads."""
    assert options.work is not None
    data, run, new = (options.work / name for name in ("data", "run", "new"))
    config = load_run_config(run)
    with process_group(config.training.device) as context:
        context.barrier()
        began, cpu = time.perf_counter(), time.process_time()
        kept = start(options.case, data, run, new, config, context)
        context.barrier()
        clock, cpu = time.perf_counter() - began, time.process_time() - cpu
        cpu = sum(context.gather(lambda: cpu))
        if isinstance(kept, RunScorer):
            if not context.is_first:
                kept.follow()
            else:
                kept.end()
        if context.is_first:
            print(json.dumps({"seconds": clock, "cpu_seconds": cpu, "peak_bytes": peak_bytes(context.device)}))


def run_case(options: Options, case: str, ranks: int, work: Path) -> dict[str, Any]:
    """What one start in new processes takes."""
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr",
        "localhost",
        "--nproc-per-node",
        str(ranks),
    ]
    words = [*launch, __file__, options.variant, "--case", case, "--work", str(work)]
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    ended = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(ended.stdout.splitlines()[-1])


def prepare(options: Options, work: Path) -> None:
    """Data, and a run of one step with its checkpoint."""
    write_workload(work / "data", 50_000, options.embedding_rows)
    shared = {"embedding.dim": options.dim, "training.device": options.device, "training.max_steps": 1}
    config = configure(options.variant, shared)
    train(replace(config), work / "data", work / "run")
    (work / "new" / "checkpoints").mkdir(parents=True)


def main(options: Options) -> None:
    """Measure, print and write."""
    if options.case:
        time_case(options)
        return
    place = machine()
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        prepare(options, work)
        found: dict[str, list[dict[str, Any]]] = {}
        for _ in range(options.rounds):
            for ranks in options.ranks:
                for case in CASES:
                    found.setdefault(f"{case} {ranks}", []).append(run_case(options, case, ranks, work))
    lines = []
    for name, turns in found.items():
        seconds, cpu, peak = (median(turn[key] for turn in turns) for key in ("seconds", "cpu_seconds", "peak_bytes"))
        lines.append((*name.split(), seconds, cpu, peak / 1e9))
    body = (
        f"{options.embedding_rows:,} embedding rows of dimension {options.dim}; medians of {options.rounds} turns.\n\n"
        + markdown_table(("start", "ranks", "s", "CPU s of all ranks", "GB of the first"), lines)
    )
    write_results(options.out, "startup", names((options.variant,)), {"machine": place, "starts": found}, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
