"""The command line: one function a subcommand, no logic."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from recmtl.ending import (
    BUG,
    GRACE_SECONDS,
    MISTAKE,
    TERMINATED,
    UNREAD,
    interrupt_on_sigterm,
    is_first_on_machine,
    leave,
    leave_interrupted,
)
from recmtl.errors import Stopped, UserError, is_out_of_memory


@dataclass
class Synth:
    """Make raw event logs of a known dataset's shape."""

    dataset: tyro.conf.Positional[str]
    """Which one; there is merrec."""
    out: tyro.conf.Positional[Path]
    """Folder to write; must not exist."""
    events: int = 1_000_000
    """Number of events."""
    seed: int = 0
    """Seed; the same seed and number of events give the same log."""


@dataclass
class Prepare:
    """Turn raw logs into training data by a recipe."""

    recipe: tyro.conf.Positional[str]
    """A recipe's name (see `recmtl recipes`) or the path of a TOML file."""
    raw: tyro.conf.Positional[Path]
    """Folder of the raw Parquet files."""
    out: tyro.conf.Positional[Path]
    """Folder to write; must not exist."""
    memory_limit: str = "4GB"
    """Memory that DuckDB may use before it spills to disk, such as 4GB."""
    threads: int | None = None
    """Threads; none: one a core."""


@dataclass
class Evaluate:
    """Measure a run's best model."""

    run: tyro.conf.Positional[Path]
    """A run folder of `recmtl train`."""
    data: Path
    """A prepared folder of the same recipe."""
    split: str = "test"
    """train, val or test."""


@dataclass
class Report:
    """Put runs into a table and a page of plots."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of `recmtl train`."""
    out: Path
    """Folder to write the report to."""


def synth(arguments: list[str]) -> None:
    """Make raw logs."""
    from recmtl.data.synthetic import synthesize

    args = _parse(Synth, arguments, "synth")
    if args.dataset != "merrec":
        raise UserError(f"no synthetic dataset '{args.dataset}'; there is merrec")
    synthesize(args.out, args.events, seed=args.seed)


def prepare(arguments: list[str]) -> None:
    """Turn raw logs into training data."""
    from recmtl.data.prepare import prepare as run_prepare
    from recmtl.data.recipe import load_recipe

    args = _parse(Prepare, arguments, "prepare")
    dataset = run_prepare(
        load_recipe(args.recipe), args.raw, args.out, memory_limit=args.memory_limit, threads=args.threads
    )
    rows = ", ".join(f"{count:,} {split}" for split, count in dataset.rows.items())
    print(f"{args.out}: {rows} rows; {len(dataset.features)} features, {len(dataset.tables)} tables")


def train(arguments: list[str]) -> None:
    """Train a model."""
    from recmtl.training.runs import train as run_training

    config, places = _parse_run(arguments, "train", run=True)
    results = run_training(config, places["data"], places["run"])
    if _is_first_rank():
        print(_summary(results, "test"))


def evaluate(arguments: list[str]) -> None:
    """Measure a run's best model."""
    from recmtl.files import write_json
    from recmtl.models import load_config
    from recmtl.training.runs import evaluate_run

    args = _parse(Evaluate, arguments, "evaluate")
    path = args.run / "config.toml"
    if not path.exists():
        raise UserError(f"{args.run}: no config.toml in it; name a run folder that `recmtl train` wrote")
    if args.split not in ("train", "val", "test"):
        raise UserError(f"--split: no split '{args.split}'; choose train, val or test")
    results = evaluate_run(load_config(str(path)), args.data, args.run, args.split)
    if _is_first_rank():
        write_json(args.run / f"evaluation_{args.split}.json", results)
        print(_summary(results, args.split))


def plan(arguments: list[str]) -> None:
    """Show where tables would go."""
    from recmtl.distributed.paper import show_plan

    config, places = _parse_run(arguments, "plan", run=False)
    print(show_plan(config, **places))


def report(arguments: list[str]) -> None:
    """Put runs into a table and a page of plots."""
    from recmtl.report import report as write_report

    args = _parse(Report, arguments, "report")
    print(write_report(list(args.runs), args.out))


def models(arguments: list[str]) -> None:
    """List the models."""
    from recmtl.models import MODELS

    for name, cls in MODELS.items():
        print(f"{name:16} {(sys.modules[cls.__module__].__doc__ or '').strip().splitlines()[0]}")


def recipes(arguments: list[str]) -> None:
    """List the recipes."""
    from recmtl.data.recipe import load_recipe, recipe_names

    for name in recipe_names():
        print(f"{name:16} {load_recipe(name).description}")


def presets(arguments: list[str]) -> None:
    """List the presets."""
    from recmtl.config import config_path, preset_names

    for name in preset_names():
        first = config_path(name).read_text().splitlines()[0]
        print(f"{name:24} {first.lstrip('# ')}")


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "synth": (synth, "make raw event logs of a known dataset's shape"),
    "prepare": (prepare, "turn raw Parquet logs into training data by a recipe"),
    "train": (train, "train a model"),
    "evaluate": (evaluate, "measure a trained model on a split"),
    "plan": (plan, "show the sharding plan and memory a rank, on paper"),
    "report": (report, "put runs into a table and a page of plots"),
    "models": (models, "list the models"),
    "recipes": (recipes, "list the recipes"),
    "presets": (presets, "list the presets"),
}


def main() -> None:
    """Entry point of ``recmtl``."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: recmtl COMMAND ...\n")
        print("\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()))
        print("\n`recmtl COMMAND --help` shows a command's options.")
        return
    interrupt_on_sigterm()
    try:
        from recmtl.quiet import silence_third_parties
        from recmtl.versions import check_versions

        if arguments[0] not in COMMANDS:
            near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
            raise UserError(f"no command '{arguments[0]}'; {hint}")
        check_versions()
        silence_third_parties()
        COMMANDS[arguments[0]][0](arguments[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as in `recmtl presets | head`
        os._exit(UNREAD)
    except UserError as problem:
        leave(f"error: {problem}", MISTAKE, after=0.0 if is_first_on_machine() else GRACE_SECONDS)
    except Stopped as end:
        leave(str(end) if _is_first_rank() else "", TERMINATED, after=0.0 if _is_first_rank() else 1.0)
    except KeyboardInterrupt:
        leave_interrupted()
    except Exception as problem:
        if _is_lost_rank(problem):
            reason = str(problem).splitlines()[0]
            leave(f"error: rank {os.environ['RANK']} lost another rank ({reason})", BUG, after=GRACE_SECONDS)
        if is_out_of_memory(problem):
            leave("error: out of memory", MISTAKE)
        traceback.print_exc()
        leave("error: recmtl failed unexpectedly; the lines above say where", BUG)


def _is_lost_rank(problem: Exception) -> bool:
    if "RANK" not in os.environ:
        return False
    from recmtl.distributed.ranks import is_lost_rank

    return is_lost_rank(problem)


def _parse(cls: type, arguments: list[str], command: str) -> Any:
    """Fill a dataclass from the command line; an unknown, missing or ill-typed option is a one-line error."""
    args: Any
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args, unknown = tyro.cli(
                cls,
                args=arguments,
                prog=f"recmtl {command}",
                config=(tyro.conf.FlagConversionOff,),
                return_unknown_args=True,
                use_underscores=True,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"recmtl {command}: {_first_paragraph(said.getvalue())}") from None
    if unknown:
        raise UserError(f"recmtl {command}: unknown option '{unknown[0]}'; `recmtl {command} --help` shows them all")
    return args


def _first_paragraph(box: str) -> str:
    """What tyro says in a box, up to the first rule, as one line."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    rule = next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))
    return " ".join(line for line in lines[:rule] if line)


def _parse_run(arguments: list[str], command: str, *, run: bool) -> tuple[Any, dict[str, Any]]:
    """CONFIG, then where the data is, then overrides of the configuration's keys."""
    import dataclasses

    from recmtl.models import load_config

    if not arguments or arguments[0].startswith("-"):
        if not {"-h", "--help"} & set(arguments):
            raise UserError(f"recmtl {command}: name a preset or a TOML file first; `recmtl presets` lists the presets")
        arguments = ["mmoe", *arguments]
    default = load_config(arguments[0])
    places = [("data", Annotated[Path, tyro.conf.arg(help="Prepared folder of `recmtl prepare`.")])]
    if run:
        places.append(("run", Annotated[Path, tyro.conf.arg(help="Run folder to write, or to go on with.")]))
    else:
        places += [
            ("world_size", Annotated[int, tyro.conf.arg(help="Number of ranks.")], dataclasses.field(default=1)),  # type: ignore[list-item]
            ("device", Annotated[str, tyro.conf.arg(help="cpu or cuda.")], dataclasses.field(default="cuda")),  # type: ignore[list-item]
            (
                "hbm_gib",
                Annotated[float, tyro.conf.arg(help="Memory of one rank in GiB.")],
                dataclasses.field(default=80.0),
            ),  # type: ignore[list-item]
            (
                "ranks_per_node",
                Annotated[int, tyro.conf.arg(help="Ranks on one machine.")],
                dataclasses.field(default=8),
            ),  # type: ignore[list-item]
        ]
    sections = [
        (
            f.name,
            type(getattr(default, f.name)),
            dataclasses.field(default_factory=partial(getattr, default, f.name)),
        )
        for f in dataclasses.fields(default)
    ]
    cls = dataclasses.make_dataclass(command.capitalize(), [*places, *sections], kw_only=True)
    cls.__doc__ = (
        f"recmtl {command} CONFIG: CONFIG is the name of a preset or a TOML file; it gives the defaults below."
    )
    args = _parse(cls, arguments[1:], command)
    config = type(default)(**{f.name: getattr(args, f.name) for f in dataclasses.fields(default)})
    if config.model.name != default.model.name:
        raise UserError(f"--model.name: {arguments[0]} is a {default.model.name}; name a preset of {config.model.name}")
    config.validate()
    return config, {place[0]: getattr(args, place[0]) for place in places}


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _summary(results: dict[str, Any], split: str) -> str:
    """The metrics of one split as aligned text."""
    lines = [
        f"{'task':16} {'AUC':>8} {'oracle':>8} {'GAUC':>8} {'log loss':>9} {'NE':>7} {'calibr.':>8} {'base':>8} "
        f"{'rows':>12}"
    ]

    def cell(value: float | None, width: int) -> str:
        return f"{'n/a':>{width}}" if value is None else f"{value:>{width}.4f}"

    for task, m in results[split].items():
        lines.append(
            f"{task:16} {cell(m['auc'], 8)} {cell(m['oracle_auc'], 8)} {cell(m['gauc'], 8)} {cell(m['logloss'], 9)} "
            f"{cell(m['ne'], 7)} {cell(m['calibration'], 8)} {cell(m['base_rate'], 8)} {m['rows']:>12,}"
        )
    return "\n".join(lines)
