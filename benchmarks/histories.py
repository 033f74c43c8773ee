"""What a training step of a model costs with each encoder of histories, as a ratio to the model without history.

python benchmarks/histories.py --lengths 7 100

The same rows of synthetic MerRec, prepared by `merrec_sequence`, in one process and in turns. Longer histories repeat
the seven events of a row. Batches lie in memory: reading them is left out.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
import tyro
from common import RESULTS, Timing, machine, markdown_table, ratios, timing, write_results
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from variants import configure

from recmtl.config import Config
from recmtl.data.prepare.prepare import prepare
from recmtl.data.read.batch import Batch
from recmtl.data.recipe import load_recipe
from recmtl.distributed.context import DistContext, process_group
from recmtl.schema import Dataset
from recmtl.synthetic.synthesize import synthesize
from recmtl.training.session import TrainSession

ENCODERS = ("mean", "target_attention", "transformer", "hstu")
BATCHES = 8
"""Batches held in memory."""
EVENTS = 7
"""Of a history of `merrec_sequence`."""


@dataclass
class Options:
    """Measure steps."""

    preset: str = "mmoe"
    """Preset or TOML file of the model."""
    lengths: tuple[int, ...] = (7, 50)
    """Events of every history; multiples of 7, or the next lower one is taken."""
    encoders: tuple[str, ...] = ENCODERS
    """Encoders to measure."""
    layers: int = 1
    """Layers of transformer and hstu."""
    events: int = 60_000
    """Of the log."""
    batch_size: int = 1024
    """Rows in a batch."""
    rounds: int = 7
    """Turns; medians are reported."""
    steps: int = 3
    """Steps of a turn."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = RESULTS
    """Folder for the results."""


def without_histories(dataset: Dataset) -> Dataset:
    """The dataset without sequences, and without the tables that only they have."""
    features = tuple(feature for feature in dataset.features if not feature.history)
    tables = tuple(table for table in dataset.tables if any(feature.table == table.name for feature in features))
    return replace(dataset, features=features, tables=tables)


def lengthened(batch: Batch, times: int) -> Batch:
    """A batch whose histories are repeated so many times."""
    sparse, values, lengths = batch.sparse, [], []
    names: list[str] = sparse.keys()
    assert batch.longest is not None
    for name in names:
        ids, counts = sparse[name].values(), sparse[name].lengths()
        repeat = times if name in batch.longest else 1
        # All histories have the same length: row by row.
        values.append(ids.view(len(counts), -1).repeat(1, repeat).flatten() if repeat > 1 else ids)
        lengths.append(counts * repeat)
    longest = {name: times * most for name, most in batch.longest.items()}
    per_key = [len(ids) for ids in values]
    together = KeyedJaggedTensor(names, torch.cat(values), lengths=torch.cat(lengths), length_per_key=per_key)
    return replace(batch, sparse=together, longest=longest)


def measure(options: Options, data: Path, context: DistContext, configs: dict[str, Config]) -> dict[str, list[Timing]]:
    """Seconds of a step by variant, turn by turn; that without histories comes first."""
    dataset = Dataset.load(data)
    sessions: dict[str, TrainSession] = {}
    feeds: dict[str, Iterator[Batch]] = {}
    for variant, config in configs.items():
        length = variant.partition(" ")[2]
        of_variant = dataset if length else without_histories(dataset)
        session = TrainSession(config, data, of_variant, dataset.tasks, context)
        session.draw_tables()
        full = [batch for batch in session.readers["train"].batches(stop=BATCHES) if batch.rows == options.batch_size]
        held = [lengthened(batch, int(length) // EVENTS) for batch in full] if length else full
        feeds[variant], sessions[variant] = itertools.cycle(held), session
    times: dict[str, list[Timing]] = {variant: [] for variant in configs}
    for turn in range(options.rounds + 1):
        for variant in list(configs)[:: 1 if turn % 2 else -1]:
            session, batches = sessions[variant], feeds[variant]
            for _ in range(2):  # fills the pipeline
                session.run_batch(batches)
            took = timing(partial(session.run_batch, batches), options.steps, context.device)
            if turn:  # the first one warms up
                times[variant].append(took)
    return times


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    shared = {
        "training.batch_size": options.batch_size,
        "training.device": options.device,
        "sequence.layers": options.layers,
    }
    lengths = [max(EVENTS, length // EVENTS * EVENTS) for length in options.lengths]
    configs = {"none": configure(options.preset, shared)}
    for events, encoder in itertools.product(lengths, options.encoders):
        configs[f"{encoder} {events}"] = configure(options.preset, {**shared, "sequence.encoder": encoder})
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        synthesize(Path(folder) / "raw", options.events, seed=0)
        prepare(load_recipe("merrec_sequence"), Path(folder) / "raw", data)
        with process_group(options.device) as context:
            times = measure(options, data, context, configs)
    rows = []
    for variant, taken in times.items():
        encoder, _, length = variant.partition(" ")
        step = 1000 * median(clock for clock, _ in taken)
        rows.append((encoder, length or "–", step, *ratios(taken, times["none"])))
    body = (
        f"{options.preset}, batch {options.batch_size:,}, {options.layers} layers, {torch.get_num_threads()} threads; "
        f"medians of {options.rounds} turns of {options.steps} steps.\n\n"
        + markdown_table(("encoder", "events", "ms a step", "times no history", "by CPU time"), rows)
    )
    relative = {f"{encoder} {length}": {"clock": clock, "cpu": cpu} for encoder, length, _, clock, cpu in rows}
    results = {"machine": place, "seconds_and_cpu_seconds": times, "times_the_first": relative}
    write_results(options.out, "histories", options.preset, results, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
