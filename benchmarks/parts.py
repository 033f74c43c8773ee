"""One training step of one model taken apart: every part by itself, then all of them in the pipeline.

    python benchmarks/parts.py merrec_mmoe --data FOLDER --json FILE
    python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/parts.py ...

Parts, on batches held in memory unless said otherwise:

    read               the next batch, by the reader, from Parquet on disk
    lookup             the embeddings of a batch, with the exchange of ids and rows where there are several ranks
    lookup and update  the same, and backward through it with the fused optimiser
    dense              the network forward and backward, the loss and the dense optimiser
    all-to-all         the exchange alone: ids, rows forward, their gradients backward
    all-reduce         the gradients of the network
    bare step          all of a step in a plain loop, without pipeline and reader

Training:

    pipeline           from Parquet on disk through reader, prefetcher and pipeline: what a run does
    cycled             the same engine fed batches in memory, one after the other
    fixed              the same engine fed one batch over and over, with warm caches

benchmarks/throughput.py runs this once for every case and makes the tables.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro
from common import Timing, timing
from device import peak_bytes, profile
from torch import Tensor
from variants import configure

from recmtl.data.read.batch import Batch
from recmtl.data.read.prefetcher import Prefetcher
from recmtl.distributed.context import DistContext, process_group
from recmtl.schema import Dataset
from recmtl.training.session import TrainSession

CYCLED_ROWS = 2**18
"""Rows held in memory, in 4 to 64 batches."""
PROFILED = 10
"""Steps under the profiler."""

Part = Callable[[], object]


@dataclass
class Options:
    """Measure one case."""

    variant: tyro.conf.Positional[str]
    """A preset or TOML file, with settings of its own or none: `NAME:key=value:key=value`."""
    data: Path
    """Prepared folder."""
    json: Path
    """File to write."""
    batch_size: int = 4096
    """Rows in a global batch."""
    rounds: int = 5
    """Turns after one that warms up."""
    steps: int = 10
    """Steps of a turn."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 0
    """Threads of each rank's step; 0: the rank's share of the cores."""
    trace: Path | None = None
    """Also write a trace of ten steps of `pipeline` on the first rank, and print what took the most time."""


class Bench:
    """The engine, and what its parts read."""

    def __init__(self, session: TrainSession) -> None:
        self.session, self.reader, self.context = session, session.readers["train"], session.context
        count = max(4, min(64, CYCLED_ROWS // session.config.training.batch_size))
        self.memory = list(self.reader.batches(stop=count))
        self.endless = itertools.chain.from_iterable(map(self.reader.batches, itertools.count()))

    def parts(self) -> dict[str, Part]:
        """The parts of a step. To be timed before the pipeline takes the model over."""
        train_module = self.session.model.module
        on_device = itertools.cycle([batch.to(self.context.device) for batch in self.memory])
        batch = next(on_device)
        pooled = {name: x.detach().requires_grad_() for name, x in train_module.model.embed(batch.sparse).items()}
        gradients = [torch.zeros_like(x) for x in pooled.values()]

        def update() -> None:
            outputs: dict[str, Tensor] = train_module.model.embed(next(on_device).sparse)
            torch.autograd.backward(list(outputs.values()), gradients)

        def dense() -> None:
            self.session.optimizer.zero_grad()
            train_module.loss(pooled, batch)[0].backward()
            self.session.optimizer.step()

        def bare_step() -> None:
            self.session.optimizer.zero_grad()
            self.session.model(next(on_device))[0].backward()
            self.session.optimizer.step()

        parts: dict[str, Part] = {
            "read": lambda: next(self.endless),
            "lookup": lambda: train_module.model.embed(next(on_device).sparse),
            "lookup and update": update,
            "dense": dense,
            "bare step": bare_step,
        }
        if self.context.world_size > 1:
            rows = torch.cat([x.detach().flatten() for x in pooled.values()])
            weights = torch.cat([p.detach().flatten() for p in train_module.dense_parameters()])
            parts["all-to-all"] = all_to_all(batch.sparse.values(), rows, self.context.world_size)
            parts["all-reduce"] = lambda: dist.all_reduce(weights)
        return parts

    def train(self, batches: Iterator[Batch], steps: int) -> Timing:
        """Time of a training step on batches of one of the sources."""
        step = self.session.run_batch
        # The pipeline holds two batches of the last source, and the prefetcher has had time to run ahead.
        for _ in range(self.session.config.reader.prefetch + 2):
            step(batches)
        return timing(lambda: step(batches), steps, self.context.device)


def all_to_all(ids: Tensor, rows: Tensor, world_size: int) -> Part:
    """What a step exchanges where tables are spread evenly: ids once, rows of embeddings forward and backward."""
    sent = [tensor[: len(tensor) // world_size * world_size] for tensor in (ids, rows, rows)]
    received = [torch.empty_like(tensor) for tensor in sent]

    def run() -> None:
        for mine, theirs in zip(sent, received, strict=True):
            dist.all_to_all_single(theirs, mine)

    return run


def measure(options: Options, bench: Bench) -> dict[str, list[Timing]]:
    """Parts, then training on every source of batches, each in turns."""
    timings: dict[str, list[Timing]] = {}
    parts = bench.parts()
    for _ in range(options.rounds + 1):
        for name, run in parts.items():
            # Of batches that are filled at once, the first one takes the time of all.
            steps = max(options.steps, bench.reader.filled_at_once) if name == "read" else options.steps
            timings.setdefault(name, []).append(timing(run, steps, bench.context.device))
    with Prefetcher(bench.endless, bench.session.config.reader.prefetch) as feed:
        sources = {
            "pipeline": feed,
            "cycled": itertools.cycle(bench.memory),
            "fixed": itertools.repeat(bench.memory[0]),
        }
        for turn in range(options.rounds + 1):
            for name in list(sources)[:: 1 if turn % 2 else -1]:
                timings.setdefault(name, []).append(bench.train(sources[name], options.steps))
    return {name: values[1:] for name, values in timings.items()}


def busy(options: Options, bench: Bench) -> float | None:
    """How busy the GPU was in some steps of `pipeline`; writes the trace."""
    trace = options.trace if bench.context.is_first else None
    if bench.context.device.type != "cuda" and not options.trace:
        return None
    with Prefetcher(bench.endless, bench.session.config.reader.prefetch) as feed:
        bench.train(feed, 1)
        return profile(lambda: [bench.session.run_batch(feed) for _ in range(PROFILED)], bench.context.device, trace)


def summed_cpu(timings: dict[str, list[Timing]], context: DistContext) -> dict[str, list[Timing]]:
    """Seconds of the first rank, CPU seconds of all."""
    cpu = torch.tensor([[cpu for _, cpu in values] for values in timings.values()], device=context.device)
    return {
        name: [(clock, total) for (clock, _), total in zip(values, totals, strict=True)]
        for (name, values), totals in zip(timings.items(), context.sum(cpu).tolist(), strict=True)
    }


def main(options: Options) -> None:
    """Measure and write."""
    config = configure(options.variant, {"training.batch_size": options.batch_size, "training.device": options.device})
    dataset = Dataset.load(options.data)
    tasks = dataset.select_tasks(tuple(config.training.tasks))
    with process_group(config.training.device) as context:
        if options.threads:
            torch.set_num_threads(options.threads)
        session = TrainSession(config, options.data, dataset, tasks, context)
        session.draw_tables()
        bench = Bench(session)
        timings = summed_cpu(measure(options, bench), context)
        result: dict[str, Any] = {
            "variant": options.variant,
            "batch_size": options.batch_size,
            "ranks": context.world_size,
            "device": context.device.type,
            "threads": torch.get_num_threads(),
            "peak_bytes": peak_bytes(context.device),
            "busy": busy(options, bench),
            "seconds_and_cpu_seconds": timings,
        }
        if context.is_first:
            options.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
