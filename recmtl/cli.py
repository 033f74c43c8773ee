"""The command line: one function a subcommand, no logic.

Lists and help answer at once: what takes seconds to import is imported after the words are read.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field, fields, make_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from recmtl import __version__
from recmtl.arguments import (
    ApplyDelta,
    Embeddings,
    Evaluate,
    Export,
    Plan,
    Predict,
    Prepare,
    Report,
    Roll,
    Serve,
    Synth,
    Train,
)
from recmtl.catalogue import models, presets, recipes
from recmtl.config import load_config, load_run_config
from recmtl.errors import Stopped, UserError, is_out_of_memory, nearest
from recmtl.inference.signature import is_export
from recmtl.options import parse_words
from recmtl.runtime.exit import (
    BUG,
    EXIT_USER_ERROR,
    GRACE_SECONDS,
    REFUSED,
    TERMINATED,
    UNREAD,
    end_with_parent,
    exit_interrupted,
    exit_process,
    interrupt_on_signals,
    is_first_on_machine,
)
from recmtl.runtime.folders import folder_size
from recmtl.runtime.versions import check_serving, check_spark, check_training, check_versions
from recmtl.schema import SPLITS, WHOLE

if TYPE_CHECKING:
    from recmtl.data.prepare.extension import Extend
    from recmtl.inference.delta import Delta

HELP_CONFIG = "mmoe"
"""The preset whose keys `--help` shows where none is named."""


def synth(arguments: list[str]) -> None:
    """Make raw logs."""
    args = parse_words(Synth, arguments, "synth", flags=True)
    if args.dataset != "merrec":
        raise UserError(f"no synthetic dataset '{args.dataset}'; there is merrec")
    from recmtl.synthetic.synthesize import synthesize

    synthesize(args.out, args.events, seed=args.seed, days=args.days, drift=args.drift)


def prepare(arguments: list[str]) -> None:
    """Turn raw logs into training data."""
    args = parse_words(Prepare, arguments, "prepare", flags=True)
    if args.engine == "spark":
        check_spark()
    elif args.master is not None:
        raise UserError("--master: is for a cluster; add --engine spark")
    from recmtl.data.prepare.prepare import prepare as run_prepare
    from recmtl.data.prepare.summary import print_summary
    from recmtl.data.recipe import load_recipe

    dataset = run_prepare(
        load_recipe(args.recipe),
        args.raw,
        args.out,
        engine=args.engine,
        master=args.master,
        memory_limit=args.memory_limit,
        threads=args.threads,
        overwrite=args.overwrite,
        limit=args.limit,
        extend=_extend(args),
        until=args.until,
        lookahead=args.lookahead,
    )
    print_summary(dataset)
    rows = ", ".join(f"{count:,} {split}" for split, count in dataset.rows.items())
    partial = "" if dataset.limit is None else f"; partial: from the first {dataset.limit:,} raw rows (--limit)"
    print(f"{args.out}: {rows} rows; {len(dataset.features)} features, {len(dataset.tables)} tables{partial}")


def _extend(args: Prepare) -> Extend | None:
    """What to extend.

    Raises:
        UserError: an argument is there that says how to extend, and not what.
    """
    from recmtl.data.prepare.extension import Extend

    if args.extend is not None:
        return Extend(args.extend, args.since, args.lookback, args.val or 0.0, args.test or 0.0)
    for name in ("since", "lookback", "val", "test"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: is for data that are extended; name the folder with --extend")
    return None


def train(arguments: list[str]) -> None:
    """Train a model."""
    config, places = _parse_run(Train, arguments, "train")
    check_training()
    from recmtl.training.runs import train as run_training
    from recmtl.training.summary import summary

    results = run_training(config, **places)
    if _is_first_rank():
        untested = f"{places['run']}: trained up to step {results['steps']}; the data has no test rows to measure it on"
        print(summary(results, "test") or untested)


def evaluate(arguments: list[str]) -> None:
    """Measure a run's best model."""
    args = parse_words(Evaluate, arguments, "evaluate")
    splits = SPLITS if args.split == "all" else _names(args.split)
    for split in splits:
        if split not in (*SPLITS, WHOLE):
            raise UserError(f"--split: no {split!r}; {nearest(split, (*SPLITS, WHOLE, 'all'))}")
    config = load_run_config(args.run)
    if args.by is not None:
        config.metrics.by = _names(args.by)
    check_training()
    from recmtl.training.runs import evaluate_run
    from recmtl.training.summary import summary

    results = evaluate_run(config, args.data, args.run, splits)
    if _is_first_rank():
        for split, measured in results.items():
            heading = f"{split}:\n" if len(splits) > 1 else ""
            print(heading + summary(measured, split))


def roll(arguments: list[str]) -> None:
    """Do every day that is ready."""
    first = arguments[:4]  # RECIPE RAW OUT CONFIG
    if len(first) < 4 or any(word.startswith("-") for word in first):
        if not {"-h", "--help"} & set(arguments):
            raise UserError("recmtl roll: four words come first; the command is recmtl roll RECIPE RAW OUT CONFIG")
        first = [HELP_CONFIG]
    config, places = _parse_sections(Roll, first[-1], arguments, "roll")
    del places["config"]
    check_training()
    from recmtl.rolling.job import roll as run_job
    from recmtl.rolling.steps import StepFailed

    try:
        accepted = run_job(config, **places)
    except StepFailed as failed:
        exit_process(str(failed), failed.code)
    if not accepted:
        exit_process("", REFUSED)


def predict(arguments: list[str]) -> None:
    """Score new raw files."""
    args = parse_words(Predict, arguments, "predict", flags=True)
    keep = None if args.keep is None else _names(args.keep)
    options = {name: getattr(args, name) for name in ("since", "conditional", "memory_limit", "threads")}
    from recmtl.inference.predict import predict as run_predict

    if is_export(args.model):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"{args.model}: an export is scored by one process; start one, or name the run folder")
        from recmtl.inference.exported import ExportedModel

        opened: AbstractContextManager[Any] = nullcontext(ExportedModel(args.model))
    else:
        check_training()
        from recmtl.training.scorer import run_scorer

        opened = run_scorer(args.model)
    with opened as model:
        if model is not None:
            print(f"{args.out}: {run_predict(model, args.raw, args.out, keep=keep, **options):,} rows")


def export(arguments: list[str]) -> None:
    """Write a run's best model."""
    args = parse_words(Export, arguments, "export", flags=True)
    check_training()
    from recmtl.inference.delta import Delta
    from recmtl.training.export import export_run

    signature = export_run(args.run, args.out, args.dtype, compiled=args.compile, delta_from=args.delta_from)
    size = f"{folder_size(args.out) / 1e6:,.1f} MB"
    what = f"tables {args.dtype}" if args.delta_from is None else _changes(Delta.load(args.out))
    print(f"{args.out}: {signature.model} for {', '.join(signature.tasks)}; {size}, {what}")


def _changes(delta: Delta) -> str:
    changed, rows = (sum(getattr(table, name) for table in delta.tables.values()) for name in ("changed", "rows"))
    return f"a delta with {changed:,} of {rows:,} rows, of an export of {delta.bytes / 1e6:,.1f} MB"


def apply_delta(arguments: list[str]) -> None:
    """Make an export of an earlier one."""
    args = parse_words(ApplyDelta, arguments, "apply-delta")
    from recmtl.inference.delta import apply_delta as run_apply

    delta = run_apply(args.export, args.delta, args.out)
    print(f"{args.out}: version {delta.result}, {delta.bytes / 1e6:,.1f} MB")


def serve(arguments: list[str]) -> None:
    """Serve an export."""
    args = parse_words(Serve, arguments, "serve", flags=True)
    check_serving()
    from recmtl.serving.app import Settings
    from recmtl.serving.command import serve as run_server

    settings = Settings(args.export, args.name, args.limits, args.watch_seconds, args.log_features, args.log_share)
    run_server(settings, args.host, args.port, args.workers)


def embeddings(arguments: list[str]) -> None:
    """Write what a model learned of the values of a table."""
    args = parse_words(Embeddings, arguments, "embeddings")
    if is_export(args.model):
        from recmtl.inference.embeddings import export_embeddings

        rows = export_embeddings(args.model, args.table, args.out)
    else:
        check_training()
        from recmtl.training.embeddings import run_embeddings

        rows = run_embeddings(args.model, args.table, args.out)
    print(f"{args.out}: {rows:,} rows")


def plan(arguments: list[str]) -> None:
    """Show where tables would go."""
    config, places = _parse_run(Plan, arguments, "plan")
    check_training()
    from recmtl.distributed.plan_command import show_plan

    print(show_plan(config, **places))


def report(arguments: list[str]) -> None:
    """Put runs into a table and a page of plots."""
    args = parse_words(Report, arguments, "report")
    check_training()
    from recmtl.report import report as write_report

    print(write_report(list(args.runs), args.out))


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "synth": (synth, "make raw event logs of a known dataset's shape"),
    "prepare": (prepare, "turn raw Parquet logs into training data by a recipe"),
    "train": (train, "train a model"),
    "roll": (roll, "prepare, train, judge and export every day of a log"),
    "evaluate": (evaluate, "measure a trained model on a split"),
    "predict": (predict, "score new raw files with a run or an export"),
    "export": (export, "write a run's best model as a folder that needs nothing else"),
    "apply-delta": (apply_delta, "make an export of an earlier one and a delta"),
    "serve": (serve, "serve an export over HTTP"),
    "embeddings": (embeddings, "write what a model learned of a table's values"),
    "plan": (plan, "show the sharding plan and memory a rank, on paper"),
    "report": (report, "put runs into a table and a page of plots"),
    "models": (models, "list the models"),
    "recipes": (recipes, "list the recipes, or print one"),
    "presets": (presets, "list the presets, or print one"),
}


def main() -> None:
    """Entry point of ``recmtl``."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: recmtl COMMAND ...\n")
        print("\n".join(f"  {name:12} {text}" for name, (_, text) in COMMANDS.items()))
        print("\n`recmtl COMMAND --help` shows a command's options, `recmtl --version` the version.")
        return
    if arguments[0] == "--version":
        print(f"recmtl {__version__}")
        return
    interrupt_on_signals()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # the launcher leaves its ranks behind when it is killed
        end_with_parent()
    try:
        from recmtl.runtime.warnings import silence_third_parties

        if arguments[0] not in COMMANDS:
            raise UserError(f"no command '{arguments[0]}'; {nearest(arguments[0], COMMANDS)}")
        check_versions()
        silence_third_parties()
        COMMANDS[arguments[0]][0](arguments[1:])
        sys.stdout.flush()
        if "RANK" in os.environ:
            # All is done and written. While Python ends, threads of process groups can abort a rank, and so the job.
            exit_process("", 0)
    except BrokenPipeError:  # nobody reads on, as in `recmtl presets | head`
        os._exit(UNREAD)
    except UserError as error:
        exit_process(f"error: {error}", EXIT_USER_ERROR, after=0.0 if is_first_on_machine() else GRACE_SECONDS)
    except Stopped as end:
        exit_process(str(end) if _is_first_rank() else "", TERMINATED, after=0.0 if _is_first_rank() else 1.0)
    except KeyboardInterrupt:
        exit_interrupted()
    except Exception as error:
        if _is_lost_rank(error):
            reason = str(error).splitlines()[0]
            exit_process(f"error: rank {os.environ['RANK']} lost another rank ({reason})", BUG, after=GRACE_SECONDS)
        if is_out_of_memory(error):
            exit_process("error: out of memory", EXIT_USER_ERROR)
        traceback.print_exc()
        exit_process("error: recmtl failed unexpectedly; the lines above say where", BUG)


def _is_lost_rank(error: Exception) -> bool:
    if "RANK" not in os.environ:
        return False
    from recmtl.distributed.context import is_lost_rank

    return is_lost_rank(error)


def _parse_run(places: type, arguments: list[str], command: str) -> tuple[Any, dict[str, Any]]:
    """CONFIG, then the fields of `places`, then overrides of the configuration's keys."""
    if not arguments or arguments[0].startswith("-"):
        if not {"-h", "--help"} & set(arguments):
            raise UserError(f"recmtl {command}: name a preset or a TOML file first; `recmtl presets` lists the presets")
        arguments = [HELP_CONFIG, *arguments]
    return _parse_sections(places, arguments[0], arguments[1:], f"{command} CONFIG")


def _parse_sections(places: type, name: str, words: list[str], command: str) -> tuple[Any, dict[str, Any]]:
    """The fields of `places` and overrides of the keys of the configuration called `name`."""
    default = load_config(name)
    sections = [
        (
            f.name,
            type(getattr(default, f.name)),
            field(default_factory=partial(getattr, default, f.name)),
        )
        for f in fields(default)
    ]
    cls = make_dataclass(places.__name__, sections, bases=(places,), kw_only=True)
    cls.__doc__ = f"{places.__doc__} CONFIG: the name of a preset or a TOML file; it gives the defaults below."
    args = parse_words(cls, words, command)
    config = type(default)(**{f.name: getattr(args, f.name) for f in fields(default)})
    if config.model.name != default.model.name:
        raise UserError(f"--model.name: {name} is a {default.model.name}; name a preset of {config.model.name}")
    return config, {f.name: getattr(args, f.name) for f in fields(places)}


def _names(words: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(filter(None, (name.strip() for name in words.split(","))))


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
