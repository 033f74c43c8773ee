"""What a checkpoint costs training: written while it waits, and beside it (``checkpoint.background``), taken in turns.

    python benchmarks/checkpoints.py merrec_mmoe --embedding-rows 4000000 --ranks 1 2

A turn is a number of steps with one save before the first of them, or with none; it ends when the last step is done and
the checkpoint is on the disk. Ranks are processes of this machine, all on one disk. *Predicted* is the memory of
`recmtl plan`.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import tyro
from common import RESULTS, Timing, machine, markdown_table, ratios, synchronize, write_results
from variants import configure, names
from workload import write_workload

from recmtl.distributed.context import process_group
from recmtl.distributed.memory import CPU_GROWTH, predict
from recmtl.objectives.train_module import TrainModule
from recmtl.runtime.folders import folder_size
from recmtl.schema import Dataset
from recmtl.training.results import peak_resident
from recmtl.training.saving import CheckpointWriter
from recmtl.training.session import TrainSession
from recmtl.training.train_state import TrainState

BATCHES = 32
"""Batches held in memory."""
KINDS = {"training waits": False, "in the background": True}
"""What is compared, with its `checkpoint.background`."""


@dataclass
class Options:
    """Measure checkpoints."""

    variant: tyro.conf.Positional[str]
    """A preset or TOML file, with settings of its own or none: `NAME:key=value:key=value`."""
    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks."""
    embedding_rows: int = 4_000_000
    """Rows of all embedding tables together, one copy each."""
    dim: int = 32
    """Embedding dimension."""
    batch_size: int = 4096
    """Rows in a global batch."""
    examples: int = 400_000
    """Training rows to make."""
    rounds: int = 5
    """Turns of each kind after two that warm up."""
    steps: int = 20
    """Steps of a turn: `checkpoint.every_steps`, as it were."""
    device: str = "auto"
    """auto, cpu or cuda."""
    work: Path | None = None
    """Folder on the disk to write to; none: where temporary files go."""
    out: Path = RESULTS
    """Folder for the results."""


class Bench:
    """One rank of a session that saves.

    Args:
        session: to train.
        folder: for the checkpoints.
        steps: of a turn.
    """

    def __init__(self, session: TrainSession, folder: Path, steps: int) -> None:
        self.session, self.folder, self.steps = session, folder, steps
        self.batches = itertools.cycle(list(session.readers["train"].batches(stop=BATCHES)))
        self.state = TrainState()

    def writer(self, background: bool) -> CheckpointWriter:
        """What saves in one of the two ways."""
        checkpoint = replace(self.session.config.checkpoint, background=background, keep=1)
        self.session.config = replace(self.session.config, checkpoint=checkpoint)
        return CheckpointWriter(self.folder, self.session, on_failure=lambda: None)

    def turn(self, writer: CheckpointWriter | None) -> dict[str, Any]:
        """Seconds of a turn, of the save alone, and of every step."""
        context, device = self.session.context, self.session.context.device
        context.barrier()
        synchronize(device)
        began, cpu, moments = time.perf_counter(), time.process_time(), []
        if writer:
            self.state.step += 1
            writer.save(self.state)
        saved = time.perf_counter()
        for _ in range(self.steps):
            self.session.run_batch(self.batches)
            synchronize(device)
            moments.append(time.perf_counter())
        if writer:
            writer.wait()
        context.barrier()
        steps = [after - before for before, after in itertools.pairwise([saved, *moments])]
        timing: Timing = (time.perf_counter() - began, time.process_time() - cpu)
        return {"timing": timing, "save": saved - began, "steps": steps, "wait": time.perf_counter() - moments[-1]}


def run(rank: int, world: dict[str, str], options: Options, data: Path, folder: Path, answer: Any) -> None:
    """One rank, in a process that has done nothing else; the first one sends what was measured."""
    os.environ |= {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    settings = {
        "embedding.dim": options.dim,
        "training.batch_size": options.batch_size,
        "training.device": options.device,
    }
    config = configure(options.variant, settings)
    bare = psutil.Process().memory_info().rss
    with process_group(options.device) as context:
        dataset = Dataset.load(data)
        session = TrainSession(config, data, dataset, dataset.tasks, context)
        session.draw_tables()
        bench = Bench(session, folder, options.steps)
        turns: dict[str, list[dict[str, Any]]] = {"no save": []}
        bench.turn(None)
        peaks = {"no save": peak_resident()}
        writers: dict[str, CheckpointWriter | None] = {"no save": None}
        first = {}
        for kind, background in KINDS.items():  # the one that needs less memory comes first
            writers[kind], turns[kind] = bench.writer(background), []
            first[kind] = bench.turn(writers[kind])
            bench.turn(writers[kind])
            peaks[kind] = peak_resident()
        for number in range(options.rounds):
            for kind in list(writers)[:: 1 if number % 2 else -1]:
                turns[kind].append(bench.turn(writers[kind]))
        on_cpu = context.device.type == "cpu"
        train_module = TrainModule.from_config(config, dataset, dataset.tasks)
        predicted = {}
        for kind, background in KINDS.items():
            config.checkpoint.background = background
            process = bare + CPU_GROWTH if on_cpu else None
            batch_size = session.readers["train"].local_batch_size
            predicted[kind] = asdict(predict(train_module, session.plan, config, dataset, batch_size, process)[rank])
        found = {"rank": rank, "peaks": peaks, "predicted": predicted, "bare": bare}
        everyone = context.gather(lambda: found)
        if context.is_first:
            answer.send({"turns": turns, "first": first, "bytes": folder_size(folder), "memory": everyone})


def measure(ranks: int, options: Options, data: Path, folder: Path) -> dict[str, Any]:
    """What the first of so many ranks sends."""
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    world = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe(duplex=False)
    processes = [
        spawning.Process(target=run, args=(rank, world, options, data, folder, sender)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        raise SystemExit(f"{ranks} ranks: the run ended early") from None
    for process in processes:
        process.join()
    return {"ranks": ranks, **found}


def times_table(cases: list[dict[str, Any]]) -> str:
    """What a save costs, a line a number of ranks and kind."""
    rows = []
    for case in cases:
        turns, plain = case["turns"], case["turns"]["no save"]
        for kind in KINDS:
            taken = turns[kind]
            extra = median(a["timing"][0] - b["timing"][0] for a, b in zip(taken, plain, strict=True))
            clock, cpu = ratios([turn["timing"] for turn in taken], [turn["timing"] for turn in plain])
            row = [case["ranks"], kind, case["bytes"] / 1e9, median(step for turn in plain for step in turn["steps"])]
            row += [median(turn["save"] + turn["steps"][0] for turn in taken), median(turn["save"] for turn in taken)]
            row += [case["first"][kind]["save"], extra, clock, cpu]
            rows.append(row)
    header = ["ranks", "written", "GB", "s a step", "s a step with a save", "of it the save", "the first save"]
    return markdown_table([*header, "s more a turn", "times a turn without", "by CPU time"], rows)


def memory_table(cases: list[dict[str, Any]]) -> str:
    """Peak memory of every rank, GB, beside what was predicted."""
    rows = []
    for case in cases:
        for rank in case["memory"]:
            for kind in KINDS:
                predicted, peak = sum(rank["predicted"][kind].values()), rank["peaks"][kind]
                plain, staging = rank["peaks"]["no save"], rank["predicted"][kind]["staging"]
                gb = [value / 1e9 for value in (plain, peak, predicted, staging)]
                rows.append([case["ranks"], rank["rank"], kind, *gb, peak / predicted])
    header = ["ranks", "rank", "written", "peak without a save", "peak", "predicted", "of it staging"]
    return markdown_table([*header, "peak / predicted"], rows)


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    cases = []
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        data = Path(work) / "data"
        write_workload(data, options.examples, options.embedding_rows)
        for ranks in options.ranks:
            cases.append(measure(ranks, options, data, Path(work) / f"checkpoints-{ranks}"))
    body = (
        f"{options.embedding_rows:,} embedding rows of dimension {options.dim}, batch {options.batch_size:,}; medians "
        f"of {options.rounds} turns of {options.steps} steps.\n\n{times_table(cases)}\n\n"
        f"Resident memory of every rank, GB:\n\n{memory_table(cases)}"
    )
    name = f"{names((options.variant,))}-{options.embedding_rows / 1e6:.3g}m"
    write_results(options.out, "checkpoints", name, {"machine": place, "cases": cases}, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
