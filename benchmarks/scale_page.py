"""The page and the plot of scale.py."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import matplotlib
from common import markdown_table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scale_estimate import HIDDEN, Estimate

INK = "#7f7f7f"
"""Text and lines: readable on white and on black, as the file has no background."""
PARTS = {
    "lookup": "#2a78d6",
    "outputs": "#eb6834",
    "gradients": "#e8a33d",
    "update": "#1baf7a",
    "dense": "#9085e9",
}
"""Parts of a step that follow each other, and their colours."""
GB = 1e9

ASSUMED = """## What is assumed

- **GPUs**: H100 SXM with 80 GB, of which the planner may fill {usable:.0%} with tables: 3.35 TB/s of memory,
  450 GB/s of NVLink each way, 8 GPUs a machine, one 400 Gbit/s adapter (50 GB/s) each.
- **Model**: the preset `{preset}`; {batch_size:,} rows a GPU, so the global batch grows with the GPUs. Float32
  throughout, row-wise Adagrad (one number a row), one id for each of the 18 features.
- **Rows**: the month as published. Six months: 5.6 M users and, in place of `product`, 83 M items; sessions are six
  times the month's. Tables of brands, categories, sizes and colours stay as they are. A hundred times that is 8.3 G
  items: more than the 2³¹ ids of the prepared files, which would need 64 bits there.
- **Times of the tables** are TorchRec's estimates: bytes over bandwidth, no latency, no start of a kernel, all ids
  equally popular. Where they are hundredths of a millisecond a real step is longer, and so are exchanges between
  hundreds of GPUs.
- **dense**: the products of the forward and backward pass at half of 67 TFLOP/s (float32, no tensor cores).
  **all-reduce**: dense gradients around a ring, at NVLink's speed within a machine, at the adapters' beyond.
- A step is the sum of lookup, outputs, gradients, update and dense. `ids` (of the next batch) and the all-reduce run
  beside them and count where they take longer. Reading is not counted.
- **gradients**: of what was looked up, and around a ring those of replicated tables (`data_parallel`).
- **fits**: there is a plan, and the fullest GPU's peak, as `recmtl plan` predicts it, is below 80 GB. Widths up to
  {widest:,} were tried.
"""

REPLICATED = """## Which tables are replicated

Of a table of R rows and D columns that lies on other ranks, a rank sends and receives in a step with B rows of its own

    B (Σ (4 l + 4) + 8 D F) bytes,

ids and their number for each of its F features of l ids a row, pooled embeddings back, their gradients out. Of one that
every rank holds it is the gradient of all rows, twice around a ring: 8 D R bytes. With one id a row the latter is less
up to R = F B (1 + 1/D). `embedding.placement auto` replicates these tables, where they spare a rank
`embedding.replica_gain_mib` (4) together; fewer do not pay for an all-reduce and a copy of their own. Row-wise Adagrad,
Adagrad and SGD leave rows without a gradient as they are, so losses stay the same; with Adam nothing is replicated.

Of {name} on {gpus} GPUs these are {count} tables of up to {rows:,} rows: a GPU sends and receives {gradients:.1f} MB a
step for them, and {lookups:.1f} MB if they lay elsewhere.
"""


def sections(found: dict[str, list[Estimate]], rows: dict[str, dict[str, int]], batch_size: int) -> str:
    """Two tables a workload: where things lie, and what a step takes."""
    parts = []
    for name, estimates in found.items():
        sizes = ", ".join(f"{table} {count:,}" for table, count in rows[name].items())
        heading = f"## {name[0].upper()}{name[1:]}\n\nRows: {sizes}."
        parts.append(f"{heading}\n\n{_places(estimates)}\n\n{_times(estimates, batch_size)}".rstrip())
    return "\n\n".join(parts)


def _places(estimates: list[Estimate]) -> str:
    header = (
        "GPUs",
        "sharding (tables)",
        "GB on the fullest",
        "of it tables",
        "tables, fullest/mean",
        "widest that fits",
    )
    lines: list[tuple[object, ...]] = []
    for estimate in estimates:
        widest = estimate.largest_dim or "none"
        if estimate.memory is None or estimate.sharding is None:
            lines.append((estimate.gpus, "does not fit", "–", "–", "–", widest))
            continue
        kinds = ", ".join(f"{kind}: {count}" for kind, count in Counter(estimate.sharding.values()).most_common())
        tables = estimate.memory["weights"] + estimate.memory["states"]
        whole = sum(estimate.memory.values())
        lines.append((estimate.gpus, kinds, whole / GB, tables / GB, estimate.memory_imbalance, widest))
    return markdown_table(header, lines)


def _times(estimates: list[Estimate], batch_size: int) -> str:
    parts = (*PARTS, *HIDDEN)
    header = ("GPUs", *(f"{part} ms" for part in parts), "slowest/mean", "M examples/s", "planning, CPU s")
    lines = [
        (
            estimate.gpus,
            *(estimate.step_ms[part] for part in parts),
            estimate.time_imbalance,
            estimate.examples_per_second(batch_size) / 1e6,
            estimate.plan_cpu_seconds,
        )
        for estimate in estimates
        if estimate.step_ms is not None
    ]
    return markdown_table(header, lines) if lines else ""


def page(
    preset: str,
    batch_size: int,
    reserve: float,
    widest: int,
    command: str,
    replicated: dict[str, str | float],
    body: str,
    plot: str,
) -> str:
    """The whole page."""
    assumed = ASSUMED.format(usable=1 - reserve, preset=preset, batch_size=batch_size, widest=widest)
    return f"""# How far it scales, on paper

What TorchRec's planner and recmtl's prediction of memory say of MerRec's tables, trained on no GPU at all. Made by

    {command}

![Time of a step by part, and memory of the fullest GPU, against the number of GPUs]({plot})

{assumed}
{REPLICATED.format_map(replicated)}
{body}
"""


def figure(found: dict[str, list[Estimate]], memory: int, path: Path) -> None:
    """A column a workload: a step's time by part above, memory of the fullest GPU below."""
    style = {
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "font.size": 9,
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        whole = Figure(figsize=(10, 5.4), layout="constrained")
        axes = whole.subplots(2, len(found), sharex="col", squeeze=False)
        for column, (name, estimates) in enumerate(found.items()):
            axes[0, column].set_title(name, color=INK)
            _draw_times(axes[0, column], estimates)
            _draw_memory(axes[1, column], estimates, memory)
        axes[0, 0].set_ylabel("ms a step")
        axes[1, 0].set_ylabel("GB on the fullest GPU")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        whole.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        whole.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})


def _draw_times(axes: Axes, estimates: list[Estimate]) -> None:
    bottom = [0.0] * len(estimates)
    for part, colour in PARTS.items():
        heights = [estimate.step_ms[part] if estimate.step_ms else 0.0 for estimate in estimates]
        axes.bar(range(len(estimates)), heights, 0.72, bottom, color=colour, label=part)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for place, estimate in enumerate(estimates):
        if estimate.step_ms is None:
            axes.text(place, 0.02, "does not fit", rotation=90, ha="center", va="bottom", fontsize=8)


def _draw_memory(axes: Axes, estimates: list[Estimate], memory: int) -> None:
    heights = [sum(estimate.memory.values()) / GB if estimate.memory else 0.0 for estimate in estimates]
    axes.bar(range(len(estimates)), heights, 0.72, color=PARTS["lookup"])
    axes.axhline(memory / GB, color=INK, linestyle=":")
    axes.set_xticks(range(len(estimates)), [str(estimate.gpus) for estimate in estimates])
    axes.set_ylim(0, 1.1 * memory / GB)
    axes.set_xlabel("GPUs")
