"""The published MerRec comparison, row by row, beside what recmtl's presets of the same sizes do.

    python benchmarks/published.py --quality TABLE.json --steps THROUGHPUT.json

The published figures are those of Li et al. (arXiv 2402.14230) for the month 20230501. recmtl's quality is that of
synthetic events (benchmarks/table.py), so it compares models with each other and with the oracle, not with the
published figures. Memory is the host's peak in those runs, and what `recmtl plan` predicts for one GPU and the month's
tables. A step's time is a ratio to AITM's, by CPU time of one thread (benchmarks/throughput.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from common import RESULTS, machine, markdown_table, write_results
from workload import LARGE, SMALL, merrec_shaped, merrec_tables

from recmtl.config import load_config
from recmtl.distributed.oom import MemoryEstimate
from recmtl.distributed.plan import Cluster

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

    quality: tuple[Path, ...]
    """JSON files of `benchmarks/table.py merrec --presets 'merrec_*'`; of a preset in several the last one counts."""
    steps: tuple[Path, ...]
    """JSON files of `benchmarks/throughput.py` for the same presets."""
    out: Path = RESULTS
    """Folder for the results."""


def predicted_bytes(preset: str) -> int:
    """Peak memory of one GPU that trains a preset on the month, as `recmtl plan` predicts it."""
    sizes = {table: LARGE.get(table, SMALL.get(table, 6)) for table in merrec_tables()}
    one_gpu = Cluster(1, 1, "cuda", GPU_MEMORY)
    return MemoryEstimate.from_config(load_config(preset), merrec_shaped(sizes, 100_000_000), one_gpu).memory[0].total


def items(files: Iterable[Path], key: str) -> list[dict[str, Any]]:
    """What files of results have under a key, one after the other."""
    return [item for file in files for item in json.loads(file.read_text())[key]]


def auc(values: Mapping[str, Any], task: str) -> str:
    """An AUC as the table shows it, with its standard error where it has one."""
    found = values.get(task)
    if found is None:
        return "–"
    if not isinstance(found, Mapping):
        return f"{found:.3f}"
    return f"{found['auc']:.4f} ± {found['auc_se']:.4f}"


def main(options: Options) -> None:
    """Put the rows together."""
    place = machine()
    quality = {row["preset"]: row["runs"] for row in items(options.quality, "rows")}
    cases = {case["variant"]: case["cpu_milliseconds"]["pipeline"] for case in items(options.steps, "cases")}
    rows, results = [], []
    for preset, published in PUBLISHED.items():
        predicted = predicted_bytes(preset)
        ratio = cases[preset] / cases[FASTEST] if preset in cases else None
        run = quality[preset][0] if preset in quality else {}
        test = run.get("test", {})
        log_loss = sum(values["logloss"] for values in test.values())
        rows.append(
            [
                preset.removeprefix("merrec_"),
                *(auc(published.auc, task) for task in TASKS),
                f"{published.log_loss:.3f}",
                f"{published.hours / PUBLISHED[FASTEST].hours:.2f}",
                f"{published.vram:.2f}",
                *(auc(test, task) for task in TASKS),
                f"{log_loss:.4f}" if test else "–",
                f"{run['best_epoch']} of {run['epochs']}" if run else "–",
                "–" if ratio is None else f"{ratio:.2f}",
                f"{run['peak_memory_bytes']['host'] / 1e9:.2f}" if run else "–",
                f"{predicted / 1e9:.2f}",
            ]
        )
        found = {"predicted_bytes": predicted, "step_ratio": ratio, "run": run}
        results.append({"preset": preset, "published": asdict(published), **found})
    header = [
        "model",
        *(f"published {task} AUC" for task in TASKS),
        "log loss",
        "time",
        "VRAM GB",
        *(f"recmtl {task} AUC" for task in TASKS),
        "log loss",
        "best epoch",
        "step",
        "host GB",
        "planned GB",
    ]
    table = markdown_table(header, rows)
    write_results(options.out, "published", "merrec_all", {"machine": place, "rows": results}, table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
