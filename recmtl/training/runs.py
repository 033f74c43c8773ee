"""From a configuration and two folders to a trained or measured model: what the command line calls."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from recmtl.config import Config, check_continues
from recmtl.data.dataset import Dataset, Task
from recmtl.distributed.ranks import Ranks, process_group
from recmtl.errors import UserError
from recmtl.files import locked, os_errors
from recmtl.training.checkpoint import Checkpoints, best_checkpoint, checkpoint_paths, read_progress
from recmtl.training.engine import Engine
from recmtl.training.evaluation import logloss_sum
from recmtl.training.results import RESULTS, Results, describe
from recmtl.training.trainer import Trainer, is_done

LOCK = ".lock"
"""File in the run folder that the process that trains holds locked."""


def train(config: Config, data: Path, run: Path) -> Results:
    """Train the model that `config` describes on a prepared folder; `run` gets the files of the run.

    A run that is finished stays as it is.

    Raises:
        UserError: the folder has no training rows, `run` holds another run, or another process writes to it.
        Stopped: SIGTERM came; what was trained is saved.
    """
    with process_group(config.training.device) as ranks:
        dataset, tasks = open_dataset(data, config)
        if not dataset.rows.get("train"):
            raise UserError(f"{data}: split 'train' has no rows")
        with run_folder(run, ranks):
            finished = ranks.first(lambda: finished_results(config, data, dataset, run))
            if finished:
                ranks.say(f"{run}: finished already, after step {finished['steps']}")
                return finished
            engine = Engine(config, data, dataset, tasks, ranks)
            with engine.shortage_told():
                return Trainer(engine, run).fit()


def evaluate_run(config: Config, data: Path, run: Path, split: str) -> Results:
    """Measure a run's best model on a split of a prepared folder.

    Raises:
        UserError: the split has no rows, or the run no such model that is whole.
    """
    with process_group(config.training.device) as ranks:
        dataset, tasks = open_dataset(data, config)
        if not dataset.rows.get(split):
            raise UserError(f"{data}: split '{split}' has no rows")
        check_run(run, dataset, data)
        checkpoint = ranks.first(lambda: best_checkpoint(run))
        engine = Engine(config, data, dataset, tasks, ranks, measure=split)
        with engine.shortage_told():
            Checkpoints(run / "checkpoints", engine).load_whole(checkpoint)
            metrics, bins = engine.evaluate(split, split)
        measured = {"split": split, split: metrics, "logloss_sum": logloss_sum(metrics)}
        return {**describe(engine), **measured, "calibration_bins": {split: bins}}


@contextmanager
def run_folder(run: Path, ranks: Ranks) -> Iterator[None]:
    """Hold a run folder, made where it is missing, alone. A mistake found before its first checkpoint leaves no trace.

    Raises:
        UserError: it cannot be written, or another process holds it.
    """
    with ExitStack() as held:
        made = ranks.first(lambda: _take(run, held))
        try:
            with os_errors(run):
                yield
        except UserError:
            if made is not None and not checkpoint_paths(run / "checkpoints"):
                _clear(run, made)
            raise


def _take(run: Path, held: ExitStack) -> list[Path] | None:
    """Make and lock a run folder; returns the folders made, the innermost first. None: there was something in it."""
    made = [path for path in (run, *run.parents) if not path.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        empty = not any(run.iterdir())
        held.enter_context(locked(run / LOCK, run))
    except OSError as problem:
        raise UserError(f"--run: {run} cannot be written ({problem.strerror})") from None
    return made if empty else None


def _clear(run: Path, made: list[Path]) -> None:
    """Empty a run folder and remove the folders made for it; other ranks may be doing the same."""
    with suppress(OSError):
        for path in run.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    with suppress(OSError):
        for path in made:
            path.rmdir()


def finished_results(config: Config, data: Path, dataset: Dataset, run: Path) -> Results | None:
    """The results of a run that `config` would train no further; None where it would, or where they are missing.

    Raises:
        UserError: the run is not one that `config` may go on with.
    """
    check_run(run, dataset, data)
    paths = checkpoint_paths(run / "checkpoints")
    if not paths:
        return None
    if not config.checkpoint.resume:
        raise UserError(f"{run}: holds a run already; choose another --run folder or checkpoint.resume True")
    check_continues(run / "config.toml", config)
    progress = read_progress(paths[-1])
    try:
        results: Results = json.loads((run / RESULTS).read_text())
    except (FileNotFoundError, ValueError):
        return None
    finished = progress and is_done(progress, config.training) and results.get("steps") == progress.step
    return results if finished else None


def open_dataset(data: Path, config: Config) -> tuple[Dataset, tuple[Task, ...]]:
    """The prepared folder and the tasks to train on."""
    dataset = Dataset.load(data)
    return dataset, dataset.select_tasks(tuple(config.training.tasks))


def check_run(run: Path, dataset: Dataset, data: Path) -> None:
    """Refuse data of another recipe than the one a run was trained on.

    Raises:
        UserError: the fingerprints differ.
    """
    if not (run / "dataset.json").exists():
        return
    trained = Dataset.load(run)
    if trained.fingerprint != dataset.fingerprint:
        raise UserError(
            f"{data}: prepared as '{dataset.name}' ({dataset.fingerprint[:8]}), but {run} was trained on "
            f"'{trained.name}' ({trained.fingerprint[:8]}); name the data folder of that run"
        )
