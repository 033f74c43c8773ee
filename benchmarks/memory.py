"""Peak memory of a training run beside what `recmtl plan` predicts for it, each preset in a process of its own.

    python benchmarks/memory.py 'merrec_*' --embedding-rows 1000000 4000000 13000000
    python benchmarks/memory.py 'merrec_*' --dtypes float32 float16 --micro-batch-sizes 0 512

On a CPU: resident memory of the process, with and without what the bare process holds, its imports done. On a GPU: the
peak of PyTorch's allocator, what the allocator held, and what the driver says is taken. *Tensors by plan* are
the parts of the prediction that a GPU would hold: no reader, no heap, no process.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import tempfile
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import psutil
import torch
import tyro
from common import RESULTS, machine, markdown_table, write_results
from variants import configure
from workload import LARGE, write_workload

from recmtl.config import preset_names
from recmtl.data.read.prefetcher import Prefetcher
from recmtl.distributed.context import process_group, resolve_device
from recmtl.distributed.memory import CPU_GROWTH, predict
from recmtl.objectives.train_module import TrainModule
from recmtl.training.results import peak_resident
from recmtl.training.runs import open_dataset
from recmtl.training.session import TrainSession

MERREC_ROWS = sum(LARGE.values()) + 23_846
"""Rows of MerRec's tables, the small ones among them."""
TENSORS = ("weights", "states", "lookups", "dense", "activations")
"""Parts of the memory that lie on a GPU where there is one."""


@dataclass
class Options:
    """What to measure."""

    presets: tyro.conf.Positional[tuple[str, ...]] = ("merrec_*",)
    """Presets by name or by pattern."""
    embedding_rows: tuple[int, ...] = (MERREC_ROWS,)
    """Rows of all embedding tables together, one copy each."""
    dtypes: tuple[str, ...] = ("float32",)
    """embedding.dtype."""
    batch_size: int = 4096
    """Rows in a batch."""
    micro_batch_sizes: tuple[int, ...] = (0,)
    """training.micro_batch_size."""
    dim: int = 32
    """Embedding dimension."""
    examples: int = 400_000
    """Training rows; what the reader holds grows with them up to its limits."""
    steps: int = 20
    """Steps of a run."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = RESULTS
    """Folder for the results."""


def run(preset: str, dtype: str, micro_batch_size: int, data: Path, options: Options, answer: Any) -> None:
    """Train in this process, which has done nothing else; send what it took and what was predicted."""
    settings = {
        "embedding.dim": options.dim,
        "embedding.dtype": dtype,
        "training.batch_size": options.batch_size,
        "training.micro_batch_size": micro_batch_size,
        "training.device": options.device,
    }
    config = configure(preset, settings)
    bare = psutil.Process().memory_info().rss
    with process_group(options.device) as context:
        dataset, tasks = open_dataset(data, config)
        session = TrainSession(config, data, dataset, tasks, context)
        session.draw_tables()
        reader = session.readers["train"]
        with Prefetcher(reader.batches(0, 0, min(options.steps, reader.steps)), config.reader.prefetch) as batches:
            for _ in range(min(options.steps, reader.steps)):
                session.run_batch(batches)
        measured = {"host": peak_resident(), "bare": bare}
        if context.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            measured |= {
                "allocated": torch.cuda.max_memory_allocated(),
                "held": torch.cuda.max_memory_reserved(),
                "driver": total - free,
            }
        train_module = TrainModule.from_config(config, dataset, tasks)
        process = bare + CPU_GROWTH if context.device.type == "cpu" else None
        [memory] = predict(train_module, session.plan, config, dataset, reader.local_batch_size, process)
    # No checkpoint is written: benchmarks/checkpoints.py does.
    memory = replace(memory, staging=0)
    answer.send({"measured": measured, "parts": asdict(memory), "predicted": memory.total})


def measure(preset: str, dtype: str, micro_batch_size: int, data: Path, options: Options) -> dict[str, Any]:
    """What `run` sends."""
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe(duplex=False)
    process = spawning.Process(target=run, args=(preset, dtype, micro_batch_size, data, options, sender))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        raise SystemExit(f"{preset}: the run ended early") from None
    process.join()
    return found


def line(found: dict[str, Any]) -> list[str | float]:
    """A row of the table, in GB."""
    parts, measured = found["parts"], found["measured"]
    on_gpu = "driver" in measured
    peak, process = measured["driver" if on_gpu else "host"], parts["process"]
    tables = parts["weights"] + parts["states"]
    own = peak - (process if on_gpu else measured["bare"])
    rest = own - tables
    tensors = sum(parts[name] for name in TENSORS)
    cells = [found["predicted"], peak, parts["weights"], parts["states"], rest, own, tensors]
    shown = [f"{cell / 1e9:.3f}" for cell in cells]
    ratio = f"{peak / found['predicted']:.3f}"
    gpu = [f"{measured[key] / 1e9:.3f}" for key in ("allocated", "held")] if on_gpu else []
    size = f"{found['micro_batch_size']:,}" if found["micro_batch_size"] else "whole"
    case = [found["preset"], found["dtype"], size, f"{found['embedding_rows']:,}"]
    return [*case, *shown[:2], ratio, *shown[2:], *gpu]


def main(options: Options) -> None:
    """Measure, print and write."""
    place = machine()
    names = [name for pattern in options.presets for name in preset_names() if fnmatch(name, pattern)]
    results = []
    for rows in options.embedding_rows:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            write_workload(data, options.examples, rows)
            for dtype, size, preset in itertools.product(options.dtypes, options.micro_batch_sizes, names):
                found = measure(preset, dtype, size, data, options)
                case = {"preset": preset, "dtype": dtype, "micro_batch_size": size, "embedding_rows": rows}
                results.append({**case, **found})
                print(json.dumps(results[-1]), flush=True)
    header = ["preset", "tables", "micro-batch", "rows", "predicted GB", "peak GB", "measured / predicted"]
    header += ["weights", "states", "all else", "without the bare process", "tensors by plan"]
    if resolve_device(options.device) == "cuda":
        header += ["allocated", "held by the allocator"]
    body = (
        f"Dimension {options.dim}, batch {options.batch_size:,}, {options.steps} steps, {options.examples:,} training "
        f"rows. The bare process holds {results[0]['measured']['bare'] / 1e9:.3f} GB on the host.\n\n"
        + markdown_table(header, map(line, results))
    )
    model = "+".join(options.presets).replace("*", "all")
    cases = [f"{rows / 1e6:.3g}m" for rows in options.embedding_rows]
    cases += [dtype for dtype in options.dtypes if dtype != "float32"]
    cases += [f"micro{size}" for size in options.micro_batch_sizes if size]
    write_results(options.out, "memory", "-".join([model, *cases]), {"machine": place, "runs": results}, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
