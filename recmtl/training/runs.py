"""From a configuration and two folders to a trained or measured model: what the command line calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from recmtl.config import Config, check_continues, load_run_config
from recmtl.data.difference import data_difference, encoding_difference
from recmtl.distributed.context import DistContext, process_group
from recmtl.errors import UserError
from recmtl.runtime.locks import locked
from recmtl.runtime.storage import (
    exists,
    is_file,
    is_folder,
    list_folder,
    make_folder,
    os_errors,
    read_json,
    real_path,
    remove,
    remove_empty_folder,
    remove_folder,
    write_json,
)
from recmtl.schema import FILE_NAME, Dataset, Task
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.checkpoint_folder import best_checkpoint, checkpoint_paths
from recmtl.training.evaluation import logloss_sum
from recmtl.training.results import RESULTS, Results, describe
from recmtl.training.session import TrainSession
from recmtl.training.start import Start
from recmtl.training.train_state import read_state
from recmtl.training.trainer import Trainer, is_done

LOCK = ".lock"
"""File in the run folder that the process that trains holds locked."""
OF_LABELS = ("oracle", "row_weight", "observed", "base_rate")
"""Fields of a task that say what labels some data have; all others are those that a run was trained with."""
EVALUATIONS = "evaluations"
"""Folder in the run folder for what `recmtl evaluate` measured."""


def train(config: Config, data: Path, run: Path, start_from: Path | None = None) -> Results:
    """Train the model that `config` describes on a prepared folder; `run` gets the files of the run.

    A run that is finished stays as it is.

    Args:
        config: the configuration.
        data: the prepared folder.
        run: the run folder.
        start_from: folder of another run, whose best model a new run starts from; None: from new weights.

    Raises:
        UserError: the folder has no training rows, `run` holds another run, or another process writes to it; or a run
            cannot start from the other one.
        Stopped: SIGTERM came; what was trained is saved.
    """
    with process_group(config.training.device) as context:
        dataset, tasks = open_dataset(data, config)
        if not dataset.rows.get("train"):
            raise UserError(f"{data}: split 'train' has no rows")
        epochs = config.training.max_epochs
        if not dataset.rows.get("val") and config.training.validate_every_steps:
            raise UserError(f"training.validate_every_steps: {data} has no validation rows; leave it out")
        if not dataset.rows.get("val") and epochs > 1:
            context.print_rank0(
                f"{data}: no validation rows, so all {epochs} epochs are trained and the last is taken; "
                "training.max_epochs sets another number"
            )
        with run_folder(run, context) as check_held:
            finished = context.run_on_rank0(lambda: finished_results(config, data, dataset, run, start_from))
            if finished:
                context.print_rank0(f"{run}: finished already, after step {finished['steps']}")
                return finished
            start = None if start_from is None else open_start(start_from, run, context)
            if start:
                start.check(config, data, dataset, tasks)
            session = TrainSession(config, data, dataset, tasks, context)
            with session.explain_oom():
                return Trainer(session, run, start, check_held).fit()


def evaluate_run(config: Config, data: Path, run: Path, splits: tuple[str, ...]) -> dict[str, Results]:
    """Measure a run's best model on splits of a prepared folder of the same encoding, such as tomorrow's rows.

    The encoding may also have grown from the run's: ids that it assigned later are read as unseen values. Tasks,
    weights, relations and parents are those of the run; labels, groups and true probabilities are the data's.

    Args:
        config: the run's configuration.
        data: the prepared folder.
        run: the run folder, which gets ``evaluations/DATA-SPLIT.json``; DATA is the data's fingerprint.
        splits: which rows; of several splits those without rows are passed over.

    Returns:
        What was written, by split.

    Raises:
        UserError: the split has no rows, the data is encoded otherwise or lacks a task, or the run has no such model
            that is whole.
    """
    with process_group(config.training.device) as context:
        checkpoint = context.run_on_rank0(lambda: best_checkpoint(run))
        dataset, trained, tasks = open_evaluated(data, run, config)
        with_rows = tuple(split for split in splits if dataset.count(split))
        empty = [f"{data}: split '{split}' has no rows" for split in splits if split not in with_rows]
        if not with_rows:
            raise UserError(empty[0])
        for line in empty:
            context.print_rank0(line)
        session = TrainSession(config, data, dataset, tasks, context, measure=with_rows, trained=trained)
        results = {}
        with session.explain_oom():
            Checkpoints(run / "checkpoints", session).load_whole(checkpoint)
            for split in with_rows:
                metrics, bins, segments = session.evaluate(split, split, by_segment=True)
                measured = {"split": split, split: metrics, "logloss_sum": logloss_sum(metrics)}
                rest = {
                    "checkpoint": checkpoint.name,
                    "calibration_bins": {split: bins},
                    "segments": {split: segments},
                }
                results[split] = {**describe(session), **measured, **rest}
                context.run_on_rank0(partial(_write_evaluation, run, dataset, split, results[split]))
        return results


def _write_evaluation(run: Path, dataset: Dataset, split: str, results: Results) -> None:
    """Another data's results have another name, so that none are overwritten."""
    folder = run / EVALUATIONS
    with os_errors(folder):
        make_folder(folder)
    write_json(folder / f"{dataset.data_fingerprint}-{split}.json", results)


@contextmanager
def run_folder(run: Path, context: DistContext) -> Iterator[Callable[[], None]]:
    """Hold a run folder, made where it is missing, alone. A mistake found before its first checkpoint leaves no trace.

    Yields:
        What raises UserError, on the first rank, once the folder is no longer held.

    Raises:
        UserError: it cannot be written, or another process holds it.
    """
    with ExitStack() as held:
        checks: list[Callable[[], None]] = []
        made = context.run_on_rank0(lambda: _take(run, held, checks))
        try:
            with os_errors(run):
                yield checks[0] if checks else lambda: None
        except UserError:
            if made is not None and not checkpoint_paths(run / "checkpoints"):
                _clear(run, made)
            raise


def _take(run: Path, held: ExitStack, checks: list[Callable[[], None]]) -> list[Path] | None:
    """Make and lock a run folder; returns the folders made, the innermost first. None: there was something in it."""
    try:
        made = make_folder(run)
        empty = not list_folder(run)
        checks.append(held.enter_context(locked(run / LOCK, run)))
    except OSError as error:
        raise UserError(f"--run: {run} cannot be written ({error.strerror})") from None
    return made if empty else None


def _clear(run: Path, made: list[Path]) -> None:
    """Empty a run folder and remove the folders made for it; other ranks may be doing the same."""
    with suppress(OSError):
        for path in list_folder(run):
            if is_folder(path):
                remove_folder(path, ignore_errors=True)
            else:
                remove(path)
    with suppress(OSError):
        for path in made:
            remove_empty_folder(path)


def open_start(start_from: Path, run: Path, context: DistContext) -> Start | None:
    """The run to start from; None where `run` has a checkpoint, and goes on from that.

    Raises:
        UserError: there is no such run, or it has no checkpoint.
    """
    if context.run_on_rank0(lambda: bool(checkpoint_paths(run / "checkpoints"))):
        return None
    config, dataset = load_run_config(start_from), trained_dataset(start_from)
    return Start(start_from, config, dataset, context.run_on_rank0(lambda: best_checkpoint(start_from)))


def finished_results(
    config: Config, data: Path, dataset: Dataset, run: Path, start_from: Path | None = None
) -> Results | None:
    """The results of a run that `config` would train no further; None where it would, or where they are missing.

    Raises:
        UserError: the run is not one that `config` may go on with, or started from another one than `start_from`.
    """
    paths = checkpoint_paths(run / "checkpoints")
    if paths or exists(run / FILE_NAME):
        check_data(run, dataset, data)
    if not paths:
        return None
    if not config.checkpoint.resume:
        raise UserError(f"{run}: holds a run already; choose another --run folder or checkpoint.resume True")
    check_continues(run / "config.toml", config)
    state = read_state(paths[-1])
    if start_from is not None and state and (state.start_from or {}).get("run") != real_path(start_from).name:
        before = f"from {state.start_from['run']}" if state.start_from else "from new weights"
        raise UserError(f"--start-from: {run} started {before}; leave it out to go on, or name another --run folder")
    try:
        results: Results = read_json(run / RESULTS)
    except (FileNotFoundError, ValueError):
        return None
    finished = state and is_done(state, config.training) and results.get("steps") == state.step
    return results if finished else None


def open_dataset(data: Path, config: Config) -> tuple[Dataset, tuple[Task, ...]]:
    """The prepared folder and the tasks to train on."""
    dataset = Dataset.load(data)
    return dataset, dataset.select_tasks(tuple(config.training.tasks))


def open_evaluated(data: Path, run: Path, config: Config) -> tuple[Dataset, Dataset, tuple[Task, ...]]:
    """The prepared folder to measure a run on, what the run was trained on, and the run's tasks with what is known of
    their labels in that folder.

    Raises:
        UserError: the data is encoded otherwise than what the run was trained on, or has no labels of one of its tasks,
            or labels of another kind.
    """
    given, trained = Dataset.load(data), trained_dataset(run)
    if difference := encoding_difference(trained, given):
        raise UserError(
            f"{data}: encoded otherwise than what {run} was trained on: {difference}; "
            "give data of the same recipe and vocabularies, or extended from them"
        )
    labels = {task.name: task for task in given.tasks}
    tasks = trained.select_tasks(tuple(config.training.tasks))
    for task in tasks:
        if task.name not in labels:
            raise UserError(f"{data}: no task '{task.name}', which {run} was trained on; add it to the recipe")
        if labels[task.name].kind != task.kind:
            kinds = f"{labels[task.name].kind}, and {run} was trained on a {task.kind} one"
            raise UserError(f"{data}: task '{task.name}' is {kinds}; give data of the same kind")
    measured = tuple(replace(task, **{key: getattr(labels[task.name], key) for key in OF_LABELS}) for task in tasks)
    return given, trained, measured


def check_data(run: Path, dataset: Dataset, data: Path) -> None:
    """Refuse other data than a run was trained on.

    Raises:
        UserError: the fingerprints differ; names what does.
    """
    if difference := data_difference(trained_dataset(run), dataset):
        raise UserError(
            f"{data}: not the data that {run} was trained on: {difference}; "
            "give that data, or name another --run folder"
        )


def trained_dataset(run: Path) -> Dataset:
    """What a run was trained on.

    Raises:
        UserError: the run does not say, or its file is damaged.
    """
    path = run / FILE_NAME
    if not is_file(path):
        raise UserError(f"{path}: missing, so nothing says what data the run was trained on; name another run folder")
    return Dataset.load(run)
