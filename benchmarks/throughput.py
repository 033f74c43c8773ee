"""Training examples/s, and what a step is made of.

Everything runs in one process, in turns of a few steps, so that noise of the machine hits all of it:

    pipeline   from Parquet on disk through reader, prefetcher and pipeline: what training does
    fixed      the same engine fed one batch in memory over and over: what the step alone could do
    cycled     the same engine fed 64 batches in memory, one after the other: `fixed` without its warm caches
    plain      a plain PyTorch trainer (nn.Embedding, dense Adam, DataLoader; benchmarks/plain.py), same model and data
    loader     the plain trainer's DataLoader alone

Targets for `merrec_mmoe` at batch 4096 and 7 M embedding rows: pipeline at least .85 of fixed and 20 times plain.
The parts of a step are timed one by one, without overlap: reading, lookup (with the fused update), dense network.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import tyro
from common import RESULTS, Timing, machine, markdown_table, timing, write_results
from plain import PlainTrainer
from torch import Tensor
from workload import write_workload

from recmtl.config import Config
from recmtl.data.batch import Batch
from recmtl.data.dataset import Dataset
from recmtl.data.reader import Prefetcher
from recmtl.distributed.ranks import process_group
from recmtl.models import load_config
from recmtl.training.engine import Engine

PIPELINE_OVER_FIXED = 0.85
RECMTL_OVER_PLAIN = 20
CYCLED = 64
"""Batches held in memory."""


@dataclass
class Options:
    """Measure training."""

    preset: str = "merrec_mmoe"
    """A preset's name or a TOML file."""
    data: Path | None = None
    """Prepared folder; none: one in MerRec's shape with `embedding_rows`."""
    examples: int = 1_000_000
    """Training rows to make."""
    embedding_rows: int = 7_000_000
    """Rows of all embedding tables together."""
    batch_size: int = 4096
    """Rows in a batch."""
    rounds: int = 9
    """Turns; medians are reported."""
    steps: int = 30
    """Steps of a turn."""
    plain_steps: int = 1
    """Steps of the plain trainer in a turn; 0: leave it out. There for mmoe only."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int = 0
    """Threads of the step; 0: one a core."""
    profile: Path | None = None
    """Also write a trace of ten steps of `pipeline`, for chrome://tracing or Perfetto."""
    out: Path = RESULTS
    """Folder for the results."""


def configure(options: Options) -> Config:
    """The preset with the benchmark's batch size and device."""
    config = load_config(options.preset)
    device = options.device
    config.training = replace(config.training, batch_size=options.batch_size, device=device)  # type: ignore[arg-type]
    config.validate()
    return config


class Bench:
    """What is measured: the engine and what its parts read."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.reader = engine, engine.readers["train"]
        self.memory = list(self.reader.batches(stop=CYCLED))
        self.batch = self.memory[0].to(engine.ranks.device)

    def timing(self, run: Callable[[], object], steps: int) -> Timing:
        """Time a batch takes in `steps` calls."""
        return timing(run, steps, self.engine.ranks.device)

    def train(self, batches: Iterator[Batch], steps: int) -> Timing:
        """Time of a training step on batches of one of the sources."""
        step = self.engine.step
        # The pipeline holds two batches of the last source, and the prefetcher has had time to run ahead.
        for _ in range(self.engine.config.reader.prefetch + 2):
            step(batches)
        return self.timing(lambda: step(batches), steps)

    def parts(self) -> dict[str, Callable[[], object]]:
        """The parts of a step, each by itself. To be timed before the pipeline takes the model over."""
        ranker = self.engine.model.module
        pooled = {name: x.detach().requires_grad_() for name, x in ranker.embeddings(self.batch.sparse).items()}
        gradients = [torch.zeros_like(x) for x in pooled.values()]
        batches = itertools.chain.from_iterable(map(self.reader.batches, itertools.count()))

        def lookup() -> None:
            outputs: dict[str, Tensor] = ranker.embeddings(self.batch.sparse)
            torch.autograd.backward(list(outputs.values()), gradients)

        def dense() -> None:
            self.engine.optimizer.zero_grad()
            ranker.head(pooled, self.batch)[0].backward()
            self.engine.optimizer.step()

        return {
            "read": lambda: next(batches),
            "lookup": lambda: ranker.embeddings(self.batch.sparse),
            "lookup and update": lookup,
            "dense": dense,
        }


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    config = configure(options)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data
        if data is None:
            data = Path(folder) / "data"
            write_workload(data, options.examples, options.embedding_rows)
        dataset = Dataset.load(data)
        with process_group(config.training.device) as ranks:
            if options.threads:
                torch.set_num_threads(options.threads)
            bench = Bench(Engine(config, data, dataset, dataset.tasks, ranks))
            timings = measure_parts(options, bench) | measure_training(options, bench, data)
        report(options, place | {"threads": torch.get_num_threads()}, dataset, timings)


def measure_parts(options: Options, bench: Bench) -> dict[str, list[Timing]]:
    """The parts of a step in turns; a turn before them warms up."""
    timings: dict[str, list[Timing]] = {}
    parts = bench.parts()
    for _ in range(options.rounds + 1):
        for name, run in parts.items():
            timings.setdefault(f"part: {name}", []).append(bench.timing(run, options.steps))
    return {name: values[1:] for name, values in timings.items()}


def measure_training(options: Options, bench: Bench, data: Path) -> dict[str, list[Timing]]:
    """Training on every source of batches, and the plain trainer, in turns; a turn before them warms up."""
    engine = bench.engine
    timings: dict[str, list[Timing]] = {}
    plain = None
    if options.plain_steps and engine.config.model.name == "mmoe":
        plain = PlainTrainer(
            data,
            engine.dataset,
            engine.config.model,
            dim=engine.config.embedding.dim,
            batch_size=options.batch_size,
            lr=engine.config.dense.lr,
            device=engine.ranks.device,
        )
    endless = itertools.chain.from_iterable(map(bench.reader.batches, itertools.count()))
    with Prefetcher(endless, engine.config.reader.prefetch) as feed:
        sources = {
            "pipeline": feed,
            "fixed": itertools.repeat(bench.memory[0]),
            "cycled": itertools.cycle(bench.memory),
        }
        for turn in range(options.rounds + 1):
            for name in list(sources)[:: 1 if turn % 2 else -1]:
                timings.setdefault(name, []).append(bench.train(sources[name], options.steps))
            if plain is not None:
                timings.setdefault("plain", []).append(bench.timing(plain.step, options.plain_steps))
                timings.setdefault("loader", []).append(bench.timing(plain.load, options.plain_steps))
        if options.profile:
            trace(bench, feed, options.profile)
    return {name: values[1:] for name, values in timings.items()}


def trace(bench: Bench, feed: Iterator[Batch], path: Path) -> None:
    """Write a trace of ten steps of `pipeline`, and print what took the most time."""
    with torch.profiler.profile() as profiler:
        bench.train(feed, 10)
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


def speedup(timings: dict[str, list[Timing]], of: str, over: str, clock: int = 0) -> float:
    """How many times faster one is than another: the median over turns of both times' ratio in the turn."""
    return median([b[clock] / a[clock] for a, b in zip(timings[of], timings[over], strict=True)])


def report(options: Options, place: dict, dataset: Dataset, timings: dict[str, list[Timing]]) -> None:
    """Rates, ratios and how far the targets are."""
    batch = options.batch_size
    embedding_rows = sum(table.rows for table in dataset.tables)
    medians = {name: (median(t[0] for t in values), median(t[1] for t in values)) for name, values in timings.items()}
    others = [name for name in ("fixed", "cycled", "plain") if name in timings]
    ratios = {
        f"pipeline / {name}": (speedup(timings, "pipeline", name), speedup(timings, "pipeline", name, clock=1))
        for name in others
    }
    targets = [("pipeline / fixed", ratios["pipeline / fixed"][0], PIPELINE_OVER_FIXED)]
    if "plain" in timings:
        targets.append(("pipeline / plain", ratios["pipeline / plain"][0], RECMTL_OVER_PLAIN))
        free = median(step[0] - load[0] for step, load in zip(timings["plain"], timings["loader"], strict=True))
        ratios["pipeline / plain without its loader"] = (
            free / medians["pipeline"][0],
            median(a[1] - b[1] for a, b in zip(timings["plain"], timings["loader"], strict=True))
            / medians["pipeline"][1],
        )
    body = "\n\n".join(
        [
            f"{len(dataset.features)} features, {dataset.rows['train']:,} examples, {embedding_rows:,} embedding rows, "
            f"batch {batch:,}, {place['threads']} threads; medians of {options.rounds} turns of {options.steps} steps.",
            markdown_table(
                ("what", "examples/s", "ms a batch", "CPU ms a batch"),
                [(name, batch / t[0], 1000 * t[0], 1000 * t[1]) for name, t in medians.items()],
            ),
            markdown_table(("ratio of rates", "by the clock", "by CPU time"), [(n, *r) for n, r in ratios.items()]),
            markdown_table(("target", "measured", "wanted"), targets),
        ]
    )
    results = {
        "machine": place,
        "preset": options.preset,
        "batch_size": batch,
        "embedding_rows": embedding_rows,
        "examples": dataset.rows["train"],
        "examples_per_second": {name: batch / t[0] for name, t in medians.items()},
        "seconds_and_cpu_seconds_a_batch": timings,
        "ratios": {name: by_clock for name, (by_clock, _) in ratios.items()},
        "ratios_by_cpu_time": {name: by_cpu for name, (_, by_cpu) in ratios.items()},
    }
    write_results(options.out, "throughput", Path(options.preset).stem, results, body)


if __name__ == "__main__":
    main(tyro.cli(Options))
