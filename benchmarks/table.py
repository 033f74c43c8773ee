"""The table: presets trained on one dataset with several seeds, mean ± deviation over them.

    python benchmarks/table.py kuairand --raw ../shared/data/kuairand
    python benchmarks/table.py census --raw ../shared/data/census --presets 'census_*'
    python benchmarks/table.py merrec --events 2000000 --presets 'merrec_*' --alone merrec_mmoe --seeds 1

The columns are those of the published MerRec comparison: AUC of every task, log loss, time of training and validation,
peak memory; and examples/s. Tasks whose labels are numbers have their MAE in place of the AUC; the log loss is that of
the binary ones. The first rows are the oracle, where the true probabilities are known, and the base rate.
A model of a single task is trained once for every task. Start the command again and it goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import tyro
from common import RESULTS, machine, markdown_table, write_results

from recmtl.config import MODELS, config_path, load_config, preset_names
from recmtl.errors import UserError
from recmtl.metrics.entropy import entropy
from recmtl.models.ranking_model import RankingModel
from recmtl.schema import SPLITS, Dataset, Task

WORK = Path(__file__).resolve().parent / "work"
FIRST_SEED = 100
SINGLE = "single_task"
Results = dict[str, Any]
"""What ``results.json`` of a run says."""


@dataclass
class Options:
    """What to train on what."""

    recipe: tyro.conf.Positional[str]
    """Recipe of the dataset: a name or a TOML file."""
    raw: Path | None = None
    """Its raw folder; none: synthetic MerRec events."""
    events: int = 2_000_000
    """Number of synthetic events."""
    presets: tuple[str, ...] = ()
    """Presets by name, by pattern such as 'merrec_*', or TOML files; none: every model's own that applies."""
    alone: tuple[str, ...] = ()
    """Presets to train on each task alone as well (single_task always is)."""
    seeds: int = 3
    """Runs of each, with seeds 100, 101, …"""
    ranks: int = 1
    """Processes of a run."""
    overrides: str = ""
    """Further options of `recmtl train`: --overrides='--training.max_epochs 5'."""
    work: Path | None = None
    """Folder for data and runs; what it holds already is not made again. None: one in benchmarks/work."""
    out: Path = RESULTS
    """Folder for the results."""


@dataclass(frozen=True)
class Row:
    """A row of the table: a preset on all tasks, or on one alone."""

    preset: str
    task: str | None = None

    @property
    def label(self) -> str:
        """What the table calls it."""
        name = Path(self.preset).stem if self.preset.endswith(".toml") else self.preset
        return name if self.task is None else f"{name}, only {self.task}"


def recmtl(*arguments: object, ranks: int = 1) -> None:
    """Run the command line in processes of its own; where it fails, it has said why."""
    launcher = ["recmtl.launch", "--standalone", f"--nproc-per-node={ranks}", "--"]
    module = launcher if ranks > 1 else ["recmtl"]
    done = subprocess.run([sys.executable, "-m", *module, *map(str, arguments)])
    if done.returncode:
        sys.exit(done.returncode)


def prepare(options: Options, work: Path) -> Path:
    """The prepared folder, made where it isn't there."""
    raw, data = options.raw, work / "data"
    if raw is None and not data.exists():
        raw = work / "raw"
        if not raw.exists():
            recmtl("synth", "merrec", raw, "--events", options.events)
    if not data.exists():
        recmtl("prepare", options.recipe, raw, data)
    return data


def choose_rows(options: Options, dataset: Dataset) -> tuple[list[Row], dict[str, str]]:
    """The rows, and for each model's own preset that doesn't apply to the dataset, why.

    Raises:
        UserError: a pattern matches no preset.
    """
    named = [preset for pattern in options.presets for preset in matching(pattern)]
    rows, left_out = [], {}
    for preset in named or [name for name in MODELS if name in preset_names()]:
        config = load_config(preset)
        if config.training.tasks:
            rows.append(Row(preset))
            continue
        alone = config.model.name == SINGLE
        if not named and not alone:
            try:
                RankingModel(dataset, dataset.tasks, config.model, dim=config.embedding.dim)
            except UserError as error:
                left_out[preset] = str(error)
                continue
        if not alone:
            rows.append(Row(preset))
        if alone or preset in options.alone:
            rows += [Row(preset, task.name) for task in dataset.tasks]
    return list(dict.fromkeys(rows)), left_out


def matching(pattern: str) -> list[str]:
    """The presets that a pattern means; a TOML file is itself."""
    if pattern.endswith(".toml"):
        return [pattern]
    names = [name for name in preset_names() if fnmatch(name, pattern)]
    if not names:
        raise UserError(f"--presets: no preset matches '{pattern}'; `recmtl presets` lists those there are")
    return names


def train(options: Options, rows: Sequence[Row], data: Path, runs: Path) -> dict[Row, list[Results]]:
    """Train what hasn't been trained yet, one run after the other; the results of all."""
    todo = [(row, seed) for seed in range(FIRST_SEED, FIRST_SEED + options.seeds) for row in rows]
    results: dict[Row, list[Results]] = {row: [] for row in rows}
    spent: list[float] = []
    for number, (row, seed) in enumerate(todo, 1):
        run = runs / f"{row.label.replace(', only ', '-')}-{seed}-{key(options, row, data)}"
        if not (run / "results.json").exists():
            left = f", about {fmean(spent) * (len(todo) - number + 1) / 60:.0f} min left" if spent else ""
            print(f"run {number} of {len(todo)}: {row.label}, seed {seed}{left}", file=sys.stderr, flush=True)
            began = time.monotonic()
            tasks = () if row.task is None else ("--training.tasks", row.task)
            chosen = ("--training.seed", seed, *tasks, *options.overrides.split())
            recmtl("train", row.preset, "--data", data, "--run", run, *chosen, ranks=options.ranks)
            spent.append(time.monotonic() - began)
        results[row].append(json.loads((run / "results.json").read_text()))
    return results


def key(options: Options, row: Row, data: Path) -> str:
    """Short fingerprint of what a run depends on besides its seed: a changed preset is another run."""
    parts = [config_path(row.preset).read_text(), options.overrides, str(options.ranks)]
    parts.append((data / "dataset.json").read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def table(results: dict[Row, list[Results]], dataset: Dataset) -> str:
    """The Markdown table."""
    tested = {task for runs in results.values() for task in runs[0]["test"]}
    tasks = [task for task in dataset.tasks if task.name in tested]
    behind = behind_alone(results, [task.name for task in tasks if task.kind == "binary"])
    columns = {task.name: "auc" if task.kind == "binary" else "mae" for task in tasks}
    titles = [f"{task} {metric.upper()}" for task, metric in columns.items()]
    header = ["model", *titles, "log loss", "train+val min", "peak GB", "examples/s"]
    lines = reference_rows(results, tasks)
    for row, runs in results.items():
        measured = {
            task: [run["test"][task][metric] for run in runs if task in run["test"]] for task, metric in columns.items()
        }
        cells = [show(known(values), ".4f") for values in measured.values()]
        cells += [
            show(known(run["logloss_sum"] for run in runs), ".4f"),
            show([run["train_val_seconds"] / 60 for run in runs], ".2f"),
            show([peak(run) / 1e9 for run in runs], ".2f"),
            show([run["examples_per_second"] for run in runs], ",.0f"),
        ]
        lines.append([row.label, *cells, f"{behind[row]:+.4f}" if row in behind else "–"])
    if behind:
        header.append(f"worst task − {SINGLE}")
    return markdown_table(header, [line[: len(header)] for line in lines])


def known(values: Iterable[float | None]) -> list[float]:
    """Those that are there."""
    return [value for value in values if value is not None]


def reference_rows(results: dict[Row, list[Results]], tasks: Sequence[Task]) -> list[list[str]]:
    """The oracle, where it is known, and the base rate, of binary tasks."""
    tested = {task: metrics for runs in results.values() for run in runs for task, metrics in run["test"].items()}
    oracle = [tested[task.name].get("oracle_auc") for task in tasks]
    rates = known(tested[task.name]["base_rate"] for task in tasks if task.kind == "binary")
    blank = ["–"] * 4
    base = ["0.5000" if task.kind == "binary" else "–" for task in tasks]
    rows = [["base rate", *base, f"{sum(map(entropy, rates)):.4f}" if rates else "–", *blank]]
    if any(auc is not None for auc in oracle):
        rows.insert(0, ["oracle", *("–" if auc is None else f"{auc:.4f}" for auc in oracle), "–", *blank])
    return rows


def behind_alone(results: dict[Row, list[Results]], tasks: Sequence[str]) -> dict[Row, float]:
    """For every model of all binary tasks: its mean AUC less that of `single_task`, on the task where that is worst."""
    means = {
        row: {
            task: fmean(aucs)
            for task in tasks
            if task in runs[0]["test"] and (aucs := known(run["test"][task]["auc"] for run in runs))
        }
        for row, runs in results.items()
    }
    alone = {row.task: means[row][row.task] for row in results if row.preset == SINGLE and row.task in means[row]}
    if not tasks or set(alone) != set(tasks):
        return {}
    return {row: min(auc[task] - alone[task] for task in tasks) for row, auc in means.items() if set(auc) == set(tasks)}


def peak(run: Results) -> float:
    """Peak bytes: of the GPU where there is one, else resident on the host."""
    memory = run["peak_memory_bytes"]
    return float(memory["host"] if memory["device"] is None else memory["device"])


def slim(run: Results) -> Results:
    """Results, of a run or of an evaluation of one split, without most of their bytes: the points of calibration plots,
    the segments, and the folds behind the errors.
    """
    kept = {key: value for key, value in run.items() if key not in ("calibration_bins", "segments")}
    for split in kept.keys() & set(SPLITS):
        kept[split] = {
            task: {name: value for name, value in measured.items() if name != "auc_folds"}
            for task, measured in run[split].items()
        }
    return kept


def show(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation (of a sample, n − 1)."""
    if not values:
        return "–"
    deviation = f" ± {stdev(values):{form.removeprefix('+')}}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{deviation}"


def main() -> None:
    """Entry point."""
    options = tyro.cli(Options, description=__doc__)
    place = machine()
    name = Path(options.recipe).stem
    size = "" if options.raw else f"-{options.events}"
    work = options.work or WORK / f"table-{name}{size}"
    work.mkdir(parents=True, exist_ok=True)
    try:
        data = prepare(options, work)
        dataset = Dataset.load(data)
        rows, left_out = choose_rows(options, dataset)
    except UserError as error:
        sys.exit(f"error: {error}")
    results = train(options, rows, data, work / "runs")
    notes = [f"Left out: {preset} ({reason})." for preset, reason in left_out.items()]
    body = [
        table(results, dataset),
        f"Seeds from {FIRST_SEED}, {options.seeds} a row; {dataset.rows['test']:,} test rows.",
        *notes,
    ]
    found = {
        "machine": place,
        "dataset": dataset.name,
        "rows": [
            {"label": row.label, **asdict(row), "runs": [slim(run) for run in runs]} for row, runs in results.items()
        ],
        "left_out": left_out,
    }
    chosen = "".join(f"-{Path(preset).stem.replace('*', 'all')}" for preset in options.presets)
    write_results(options.out, "table", f"{name}{size}{chosen}", found, "\n\n".join(body))


if __name__ == "__main__":
    main()
