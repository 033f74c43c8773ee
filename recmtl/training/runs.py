"""From a configuration and two folders to a trained or measured model: what the command line calls."""

from __future__ import annotations

from pathlib import Path

from recmtl.config import Config, check_continues
from recmtl.data.dataset import Dataset, Task
from recmtl.distributed.ranks import process_group
from recmtl.errors import UserError
from recmtl.training.checkpoint import Checkpoints, best_checkpoint, checkpoint_paths
from recmtl.training.engine import Engine
from recmtl.training.evaluation import logloss_sum
from recmtl.training.results import Results, describe
from recmtl.training.trainer import Trainer


def train(config: Config, data: Path, run: Path) -> Results:
    """Train the model that `config` describes on a prepared folder; `run` gets the files of the run.

    Raises:
        UserError: the folder has no training rows, or `run` holds another run.
    """
    dataset, tasks = open_dataset(data, config)
    if not dataset.rows.get("train"):
        raise UserError(f"{data}: split 'train' has no rows")
    check_run(run, dataset, data)
    if config.checkpoint.resume and checkpoint_paths(run / "checkpoints"):
        check_continues(run / "config.toml", config)
    with process_group(config.training.device) as ranks:
        return Trainer(Engine(config, data, dataset, tasks, ranks), run).fit()


def evaluate_run(config: Config, data: Path, run: Path, split: str) -> Results:
    """Measure a run's best model on a split of a prepared folder."""
    dataset, tasks = open_dataset(data, config)
    if not dataset.rows.get(split):
        raise UserError(f"{data}: split '{split}' has no rows")
    check_run(run, dataset, data)
    checkpoint = best_checkpoint(run)
    with process_group(config.training.device) as ranks:
        engine = Engine(config, data, dataset, tasks, ranks, measure=split)
        checkpoints = Checkpoints(run / "checkpoints", engine.model, engine.optimizer, ranks)
        checkpoints.load(checkpoint, with_optimizer=False)
        metrics, bins = engine.evaluate(split, split)
        measured = {"split": split, split: metrics, "logloss_sum": logloss_sum(metrics)}
        return {**describe(engine), **measured, "calibration_bins": {split: bins}}


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
