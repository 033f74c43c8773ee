"""The published MerRec comparison, row by row, beside what recmtl's presets of the same sizes do.

    python benchmarks/table.py merrec --events 2000000 --presets 'merrec_*' --seeds 1 --work WORK
    python benchmarks/published.py --runs WORK/runs --steps THROUGHPUT.json

The published figures are those of Li et al. (arXiv 2402.14230) for the month 20230501. recmtl's quality is that of
synthetic events, so it compares models with each other and with the oracle, not with the published figures; differences
to AITM are on the same test rows, and so are their standard errors. Memory is the host's peak in those runs, and what
`recmtl plan` predicts for one GPU and the month's tables. A step's time is a ratio to AITM's, by CPU time of one thread
(benchmarks/throughput.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from common import RESULTS, machine, markdown_table, write_results
from table import FIRST_SEED, slim
from workload import LARGE, SMALL, merrec_shaped, merrec_tables

from recmtl.config import load_config
from recmtl.distributed.oom import MemoryEstimate
from recmtl.distributed.plan import Cluster
from recmtl.metrics.jackknife import difference, standard_error

GPU_MEMORY = 80 * 10**9
"""Of the GPU for which a run is planned."""
TASKS = ("view", "like")


@dataclass(frozen=True)
class Published:
    """A row of the published table."""

    auc: Mapping[str, float]
    log_loss: float
    hours: float
    """Of training and validation together."""
    vram: float
    """Peak GB of the device."""


PUBLISHED = {
    "merrec_mmoe_view": Published({"view": 0.709}, 0.395, 16.3, 3.93),
    "merrec_mmoe_like": Published({"like": 0.709}, 0.354, 16.6, 3.93),
    "merrec_mmoe": Published({"view": 0.712, "like": 0.713}, 0.744, 22.61, 3.94),
    "merrec_esmm": Published({"view": 0.713, "like": 0.715}, 0.744, 23.7, 3.94),
    "merrec_aitm": Published({"view": 0.773, "like": 0.736}, 0.684, 2.85, 3.26),
    "merrec_ple": Published({"view": 0.773, "like": 0.736}, 0.686, 4.38, 3.39),
    "merrec_omoe": Published({"view": 0.773, "like": 0.737}, 0.684, 3.3, 4.17),
    "merrec_stem": Published({"view": 0.772, "like": 0.736}, 0.683, 9.68, 11.27),
}
"""By preset."""
FASTEST = "merrec_aitm"
"""The fastest published one, to which times are ratios."""


@dataclass
class Options:
    """Where the measured figures lie."""

    runs: Path
    """Folder of the runs that `benchmarks/table.py merrec --presets 'merrec_*'` trained, one of each preset."""
    steps: tuple[Path, ...]
    """JSON files of `benchmarks/throughput.py` for the same presets."""
    out: Path = RESULTS
    """Folder for the results."""


def predicted_bytes(preset: str) -> int:
    """Peak memory of one GPU that trains a preset on the month, as `recmtl plan` predicts it."""
    sizes = {table: LARGE.get(table, SMALL.get(table, 6)) for table in merrec_tables()}
    one_gpu = Cluster(1, 1, "cuda", GPU_MEMORY)
    return MemoryEstimate.from_config(load_config(preset), merrec_shaped(sizes, 100_000_000), one_gpu).memory[0].total


def trained(runs: Path, preset: str) -> dict[str, Any]:
    """Results of the run of a preset; empty where it has not ended."""
    found = sorted(runs.glob(f"{preset}-{FIRST_SEED}-*/results.json"))
    if len(found) > 1:
        sys.exit(f"error: {runs}: {found[0].parent.name} and {found[1].parent.name} are of one preset; move one away")
    return json.loads(found[0].read_text()) if found else {}


def steps(files: Iterable[Path]) -> dict[str, float]:
    """CPU milliseconds of a step by preset."""
    cases = [case for file in files for case in json.loads(file.read_text())["cases"]]
    return {case["variant"]: case["cpu_milliseconds"]["pipeline"] for case in cases}


def less(run: Mapping[str, Any], other: Mapping[str, Any], task: str) -> dict[str, float] | None:
    """A run's AUC less that of another one, and the standard error of that difference on their test rows."""
    one, two = (results.get("test", {}).get(task) for results in (run, other))
    if one is None or two is None:
        return None
    if run["data_fingerprint"] != other["data_fingerprint"]:
        sys.exit("error: the runs have different data")
    error = standard_error(difference(one["auc_folds"], two["auc_folds"]))
    return None if error is None else {"difference": one["auc"] - two["auc"], "error": error}


def main(options: Options) -> None:
    """Put the rows together."""
    place = machine()
    milliseconds = steps(options.steps)
    reference = trained(options.runs, FASTEST)
    rows, results = [], []
    for preset, published in PUBLISHED.items():
        run, predicted = trained(options.runs, preset), predicted_bytes(preset)
        step = milliseconds[preset] / milliseconds[FASTEST] if preset in milliseconds else None
        beside = {task: less(run, reference, task) for task in TASKS if preset != FASTEST}
        rows.append([preset.removeprefix("merrec_"), *published_cells(published), *cells(run, beside)])
        rows[-1] += ["–" if step is None else f"{step:.2f}", f"{predicted / 1e9:.2f}"]
        measured = {"run": slim(run), "less_aitm": beside, "step_ratio": step, "predicted_bytes": predicted}
        results.append({"preset": preset, "published": asdict(published), **measured})
    header = [
        "model",
        *(f"published {task} AUC" for task in TASKS),
        "log loss",
        "time",
        "VRAM GB",
        *(title for task in TASKS for title in (f"recmtl {task} AUC", "less AITM's")),
        "log loss",
        "best epoch",
        "host GB",
        "step",
        "planned GB",
    ]
    table = markdown_table(header, rows)
    write_results(options.out, "published", "merrec_all", {"machine": place, "rows": results}, table)


def published_cells(row: Published) -> list[str]:
    """What was published, time as a ratio."""
    aucs = [f"{row.auc[task]:.3f}" if task in row.auc else "–" for task in TASKS]
    return [*aucs, f"{row.log_loss:.3f}", f"{row.hours / PUBLISHED[FASTEST].hours:.2f}", f"{row.vram:.2f}"]


def cells(run: Mapping[str, Any], beside: Mapping[str, Mapping[str, float] | None]) -> list[str]:
    """A run's AUCs ± standard errors, each with its difference to the reference's, log loss, epochs and memory."""
    shown = []
    for task in TASKS:
        values, gap = run.get("test", {}).get(task), beside.get(task)
        shown.append("–" if values is None else f"{values['auc']:.4f} ± {values['auc_se']:.4f}")
        shown.append("–" if gap is None else f"{gap['difference']:+.4f} ± {gap['error']:.4f}")
    if not run:
        return [*shown, "–", "–", "–"]
    memory = run["peak_memory_bytes"]["host"] / 1e9
    return [*shown, f"{run['logloss_sum']:.4f}", f"{run['best_epoch']} of {run['epochs']}", f"{memory:.2f}"]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
