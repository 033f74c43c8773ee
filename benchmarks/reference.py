"""recmtl against the trainer people write first (benchmarks/plain.py): same network, same data, part by part.

    python benchmarks/reference.py

Three parts differ, and each is swapped by itself, into the plain trainer and out of recmtl:

    tables    one nn.Embedding a column and dense Adam, or recmtl's engine: shared tables, fused row-wise Adagrad
    loader    a DataLoader over rows in memory, or recmtl's reader, from Parquet on disk
    metrics   torchmetrics' exact AUC, or recmtl's metrics (AUC, log loss, normalised entropy, calibration)

Speed is that of an epoch: a million training rows and an eighth of that to validate, on MerRec-shaped data. Quality
is the test AUC of both after every epoch on synthetic MerRec events: being fast is worth nothing at another quality.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from common import RESULTS, Timing, machine, markdown_table, ratios, timing, write_results
from trainers import LOADERS, METRICS, TABLES, AnyBatch
from variants import configure, names
from workload import write_workload

from recmtl.config import Config
from recmtl.data.prepare.prepare import prepare
from recmtl.data.recipe import load_recipe
from recmtl.distributed.context import DistContext, process_group
from recmtl.schema import Dataset
from recmtl.synthetic.synthesize import synthesize

EPOCH = 1_000_000
"""Training rows of the epoch that times are given for."""
VALIDATION = EPOCH // 8
Parts = tuple[str, str, str]
"""Names of tables, loader and metrics."""
PLAIN: Parts = ("plain", "plain", "plain")


@dataclass
class Options:
    """Compare with plain PyTorch."""

    preset: str = "merrec_mmoe"
    """Whose speed to measure: an MMoE's preset or TOML file."""
    embedding_rows: tuple[int, ...] = (1_000_000, 7_000_000)
    """Rows of all tables together; the plain trainer, with a table a column, has more. Dense Adam needs sixteen bytes
    a row and dimension."""
    batch_size: int = 4096
    """Rows in a batch."""
    examples: int = 500_000
    """Training rows to make."""
    rounds: int = 5
    """Turns; medians are reported."""
    steps: int = 2
    """Steps of a turn with plain tables; ten times as many with recmtl's, and batches to validate."""
    quality: str = "mmoe"
    """Whose quality to compare: an MMoE's preset or TOML file."""
    events: int = 300_000
    """Synthetic events to compare it on; 0: leave quality out."""
    epochs: int = 3
    """Epochs to train both for."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = RESULTS
    """Folder for the results."""


def label(parts: Parts) -> str:
    """What a trainer of these parts is called."""
    kinds = dict(zip(("tables", "loader", "metrics"), parts, strict=True))
    for trainer, other in (("plain", "recmtl"), ("recmtl", "plain")):
        swapped = [kind for kind, part in kinds.items() if part == other]
        if len(swapped) < 2:
            return f"{trainer}, {other}'s {swapped[0]}" if swapped else trainer
    raise AssertionError("three parts of two kinds")


def speed(options: Options, config: Config, data: Path, context: DistContext) -> dict[Parts, list[Timing]]:
    """Seconds, and CPU seconds, of the epoch with every combination of parts, turn by turn."""
    dataset = Dataset.load(data)
    tasks = [task.name for task in dataset.tasks]
    endless = {
        name: itertools.chain.from_iterable(map(make(config, data, dataset, "train"), itertools.count()))
        for name, make in LOADERS.items()
    }
    tables = {name: make(config, data, dataset, context) for name, make in TABLES.items()}
    batch = options.batch_size
    times: dict[Parts, list[Timing]] = {}

    def seconds(run: Callable[[Iterator[AnyBatch]], object], loader: str, steps: int, rows: int) -> Timing:
        """Of `rows` rows, by what `steps` batches take."""
        took = timing(lambda: run(itertools.islice(endless[loader], steps)), 1, context.device)
        clock, cpu = (kind * rows / (steps * batch) for kind in took)
        return clock, cpu

    for turn in range(options.rounds + 1):
        for (name, trainer), loader in itertools.product(tables.items(), LOADERS):
            steps = options.steps * (10 if name == "recmtl" else 1)
            train = seconds(trainer.train, loader, steps, EPOCH)
            for kind, measure in METRICS.items():
                validate = seconds(
                    lambda batches, t=trainer, m=measure: m(t.predict(batches), tasks, context),  # type: ignore[misc]
                    loader,
                    10 * options.steps,
                    VALIDATION,
                )
                if turn:  # the first one warms up
                    epoch = train[0] + validate[0], train[1] + validate[1]
                    times.setdefault((name, loader, kind), []).append(epoch)
    return times


def quality(options: Options, folder: Path, context: DistContext) -> list[dict[str, Any]]:
    """Test AUC and seconds of both trainers after every epoch on synthetic events."""
    raw, data = folder / "raw", folder / "prepared"
    synthesize(raw, options.events)
    dataset = prepare(load_recipe("merrec"), raw, data)
    config = configure(options.quality, {"training.device": options.device})
    tasks = [task.name for task in dataset.tasks]
    found: list[dict[str, Any]] = []
    for name in TABLES:
        train, test = (LOADERS[name](config, data, dataset, split) for split in ("train", "test"))
        trainer = TABLES[name](config, data, dataset, context)
        clock = cpu = 0.0
        for epoch in range(options.epochs):
            took = timing(lambda: trainer.train(train(epoch)), 1, context.device)  # noqa: B023
            clock, cpu = clock + took[0], cpu + took[1]
            auc = METRICS[name](trainer.predict(test(0)), tasks, context)
            found.append({"trainer": name, "epoch": epoch + 1, "seconds": clock, "cpu_seconds": cpu, "test_auc": auc})
    return found


def speed_table(times: dict[Parts, list[Timing]]) -> str:
    """Every combination beside the plain trainer."""
    rows = []
    for parts in sorted(times, key=lambda parts: (parts.count("recmtl"), parts)):
        clock, cpu = (median(took[kind] for took in times[parts]) for kind in (0, 1))
        faster = ratios(times[PLAIN], times[parts])
        rows.append((label(parts), EPOCH / clock, clock, cpu, *faster))
    return markdown_table(("trainer", "examples/s", "s an epoch", "CPU s", "times plain", "by CPU time"), rows)


def quality_table(found: list[dict[str, Any]]) -> str:
    """Both trainers' AUC, epoch by epoch."""
    tasks = list(found[0]["test_auc"])
    header = ("trainer", "epoch", *(f"{task} AUC" for task in tasks), "s of training", "CPU s")
    return markdown_table(
        header,
        [
            (
                line["trainer"],
                line["epoch"],
                *(f"{line['test_auc'][task]:.4f}" for task in tasks),
                line["seconds"],
                line["cpu_seconds"],
            )
            for line in found
        ],
    )


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    config = configure(options.preset, {"training.batch_size": options.batch_size, "training.device": options.device})
    parts: list[str] = []
    results: dict[str, Any] = {"machine": place, "batch_size": options.batch_size, "epoch": EPOCH}
    with tempfile.TemporaryDirectory() as folder, process_group(options.device) as context:
        for rows in options.embedding_rows:
            data = Path(folder) / str(rows)
            write_workload(data, options.examples, rows)
            times = speed(options, config, data, context)
            gc.collect()  # the largest tables are not held twice
            results[f"speed_at_{rows}_rows"] = {label(kinds): took for kinds, took in times.items()}
            parts.append(
                f"{options.preset}, {rows:,} embedding rows of dimension {config.embedding.dim}, batch "
                f"{options.batch_size:,}, {torch.get_num_threads()} threads: an epoch of {EPOCH:,} training and "
                f"{VALIDATION:,} validation rows, from medians of {options.rounds} turns.\n\n" + speed_table(times)
            )
        if options.events:
            results["quality"] = found = quality(options, Path(folder), context)
            parts.append(f"{options.quality}, {options.events:,} synthetic events.\n\n" + quality_table(found))
    write_results(options.out, "reference", names((options.preset,)), results, "\n\n".join(parts))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
