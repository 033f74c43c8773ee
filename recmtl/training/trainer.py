"""The loop: load, step, log, validate, checkpoint; then test the best epoch's model."""

from __future__ import annotations

import json
import math
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from recmtl.config import Config, check_continues, sha256, to_toml
from recmtl.data.dataset import Dataset, Task
from recmtl.data.reader import Prefetcher, Reader
from recmtl.distributed.parallel import parallelize
from recmtl.distributed.plan import Cluster, Plan, make_plan
from recmtl.distributed.ranks import Ranks, process_group
from recmtl.errors import UserError
from recmtl.models.ranker import Ranker
from recmtl.training.checkpoint import Checkpoints, Progress, best_checkpoint, checkpoint_paths
from recmtl.training.evaluation import evaluate, logloss_sum
from recmtl.training.schedule import Warmup
from recmtl.training.tracking import ProgressLine, Tracker
from recmtl.versions import versions

Results = dict[str, Any]

DIVERGED = "lower dense.lr and embedding.lr"


@dataclass
class Engine:
    """A sharded model, ready to run: what training and evaluation share."""

    config: Config
    data: Path
    dataset: Dataset
    tasks: tuple[Task, ...]
    ranks: Ranks

    def __post_init__(self) -> None:
        config, ranks = self.config, self.ranks
        # Readers come first: they find what is wrong with the data before anything is built or written.
        self.readers = {split: self._reader(split) for split in ("train", "val", "test")}
        torch.manual_seed(config.training.seed)
        ranker = Ranker(
            self.dataset, self.tasks, config.model, dim=config.embedding.dim, amp=config.training.amp == "bf16"
        )
        # Every rank makes the plan by itself, so all must start from the same memory.
        memory = int(config.sharding.device_memory_gib * 2**30) or int(ranks.min(ranks.device_memory()))
        cluster = Cluster(ranks.world_size, ranks.local_world_size, ranks.device.type, memory)
        self.plan: Plan = make_plan(ranker, config.sharding, cluster, self.readers["train"].local_batch_size)
        self.model, self.optimizer = parallelize(ranker, self.plan, config, ranks.device)
        # Until here all ranks drew the same weights; dropout must differ between them.
        torch.manual_seed(config.training.seed + ranks.rank)
        self.pipeline = TrainPipelineSparseDist(self.model, self.optimizer, ranks.device, execute_all_batches=True)

    def _reader(self, split: str) -> Reader:
        config, ranks = self.config, self.ranks
        return Reader(
            self.data,
            self.dataset,
            split,
            self.tasks,
            batch_size=config.training.batch_size,
            streams=config.reader.streams,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=config.training.seed,
            shuffle=split == "train" and config.reader.shuffle,
            evaluation=split != "train",
            pin_memory=ranks.device.type == "cuda",
        )

    def evaluate(self, split: str, title: str) -> dict[str, dict[str, float | int | None]]:
        """Metrics of every task on a split.

        Raises:
            UserError: the model's outputs are no numbers.
        """
        metrics = evaluate(
            self.model,
            self.pipeline,
            self.readers[split],
            self.ranks,
            title=title,
            gauc=self.config.metrics.gauc,
            prefetch=self.config.reader.prefetch,
        )
        loss = logloss_sum(metrics)
        if not math.isfinite(loss):
            raise UserError(f"the log loss on the {split} split is {loss}; {DIVERGED}")
        return metrics

    def check_pipelined(self) -> None:
        """Fail if the pipeline does not see the sharded tables: it would run, slower, without overlap."""
        if not self.pipeline._pipelined_modules:
            raise RuntimeError(
                "no sharded module is pipelined: `Embeddings.collection` must be called on `batch.sparse`"
            )


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


class Trainer:
    """Trains one model.

    Args:
        engine: the sharded model and its data.
        run: the run folder, made here.
    """

    def __init__(self, engine: Engine, run: Path) -> None:
        self.engine, self.run, self.config, self.ranks = engine, run, engine.config, engine.ranks
        self.checkpoints = Checkpoints(
            run / "checkpoints", engine.model, engine.optimizer, engine.ranks, engine.config.checkpoint.keep
        )
        self.warmup = Warmup(engine.optimizer, engine.config.training.warmup_steps)
        self.progress = Progress()

    def fit(self) -> Results:
        """Train until the configuration says stop, test the best epoch's model, write ``results.json``.

        Raises:
            UserError: the data cannot be read; the message names file and column.
        """
        self._resume()
        if self.ranks.is_first:
            self._describe_run()
        with Tracker(
            self.run,
            enabled=self.ranks.is_first,
            tensorboard=self.config.metrics.tensorboard,
            step=self.progress.step,
        ) as self.tracker:
            while not self._done():
                self._epoch()
            return self._finish()

    def _resume(self) -> None:
        paths = self.checkpoints.paths()
        if not paths:
            return
        if not self.config.checkpoint.resume:
            raise UserError(f"{self.run}: holds a run already; choose another --run folder or checkpoint.resume True")
        self.progress = self.checkpoints.load(paths[-1])

    def _describe_run(self) -> None:
        try:
            self.run.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(f"--run: {self.run} cannot be written ({problem.strerror})") from None
        (self.run / "config.toml").write_text(to_toml(self.config))
        (self.run / "plan.json").write_text(json.dumps(self.engine.plan.to_json(), indent=2) + "\n")
        self.engine.dataset.save(self.run)

    def _done(self) -> bool:
        progress, training = self.progress, self.config.training
        return (
            progress.epoch >= training.max_epochs
            or bool(training.max_steps and progress.step >= training.max_steps)
            or bool(training.patience and progress.bad_epochs >= training.patience)
        )

    def _epoch(self) -> None:
        """Train to the end of an epoch, then validate and checkpoint; or only up to the last step allowed."""
        complete = self._train()
        progress = self.progress
        epoch = progress.epoch + 1
        if complete:
            progress.epoch, progress.step_in_epoch = epoch, 0
        if self.engine.readers["val"].steps:
            self._validate(epoch, complete)
        else:
            progress.best_epoch, progress.best_step = epoch, progress.step
        self.checkpoints.save(progress)

    def _train(self) -> bool:
        """Train to the end of the epoch or the last step allowed; whether it was the former."""
        config, engine, progress = self.config, self.engine, self.progress
        reader = engine.readers["train"]
        limit = config.training.max_steps
        stop = min(reader.steps, progress.step_in_epoch + limit - progress.step) if limit else reader.steps
        losses = torch.zeros(len(engine.tasks), device=self.ranks.device)
        logged_step, logged_examples, logged = progress.step, progress.examples, time.monotonic()
        began = logged
        with (
            Prefetcher(reader.batches(progress.epoch, progress.step_in_epoch, stop), config.reader.prefetch) as batches,
            ProgressLine(
                f"epoch {progress.epoch + 1}", stop, enabled=self.ranks.is_first, start=progress.step_in_epoch
            ) as line,
        ):
            for step_in_epoch in range(progress.step_in_epoch, stop):
                self.warmup.set(progress.step)
                task_losses, _, _ = engine.pipeline.progress(batches)
                if not progress.step:
                    engine.check_pipelined()
                losses += task_losses
                progress.step, progress.step_in_epoch = progress.step + 1, step_in_epoch + 1
                progress.examples += reader.rows_in_step(step_in_epoch)
                every, last = config.checkpoint.every_steps, step_in_epoch + 1 == stop
                save = bool(every) and progress.step % every == 0 and not last
                note = None
                # Also before a checkpoint: no window of losses is cut in two, and a broken state is not saved.
                if progress.step % config.metrics.every_steps == 0 or save or last:
                    # The only place in the loop where the host waits for the device.
                    mean = self.ranks.sum(losses / (progress.step - logged_step)) / self.ranks.world_size
                    now = time.monotonic()
                    note = self._log(mean.tolist(), (progress.examples - logged_examples) / (now - logged))
                    logged_step, logged_examples, logged = progress.step, progress.examples, now
                    losses.zero_()
                line.step(note)
                if save:
                    self._spent(began)
                    self.checkpoints.save(progress)
                    began = logged = time.monotonic()
        self._spent(began)
        return progress.step_in_epoch == reader.steps

    def _spent(self, began: float) -> None:
        """Book the time since `began` as training."""
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - began
        self.progress.seconds += seconds
        self.progress.train_seconds += seconds

    def _log(self, losses: list[float], rate: float) -> str:
        """Write the mean losses since the last line; returns what to show beside the progress."""
        values = {f"loss/{task.name}": value for task, value in zip(self.engine.tasks, losses, strict=True)}
        loss = sum(values.values())
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {self.progress.step}; {DIVERGED}")
        self.tracker.log(
            self.progress.step, {"epoch": self.progress.epoch + 1, "loss": loss, **values, "examples_per_second": rate}
        )
        return f"loss {loss:.4f}  {rate:,.0f} examples/s"

    def _validate(self, epoch: int, complete: bool) -> None:
        """Measure the validation split after epoch `epoch`, counted from 1, or a part of it.

        Patience counts complete epochs: a run that stopped at max_steps can go on as if it had not.
        """
        progress = self.progress
        began = time.monotonic()
        metrics = self.engine.evaluate("val", f"epoch {epoch} validation")
        loss = logloss_sum(metrics)
        better = progress.best_loss is None or loss < progress.best_loss
        if better:
            progress.best_loss, progress.bad_epochs, progress.val = loss, 0, metrics
            progress.best_epoch, progress.best_step = epoch, progress.step
        elif complete:
            progress.bad_epochs += 1
        progress.seconds += time.monotonic() - began
        flat = {f"val/{task}/{name}": v for task, values in metrics.items() for name, v in values.items()}
        self.tracker.log(progress.step, {"epoch": epoch, "val/loss": loss, **flat})
        aucs = "  ".join(f"{task} AUC {_shown(values['auc'])}" for task, values in metrics.items())
        best = "  (best so far)" if better else ""
        self.tracker.say(f"epoch {epoch}  validation loss {loss:.4f}  {aucs}{best}")

    def _finish(self) -> Results:
        progress = self.progress
        self.ranks.barrier()
        if progress.best_step and progress.best_step != progress.step:
            self.checkpoints.load(self.checkpoints.path(progress.best_step), with_optimizer=False)
        test = self.engine.evaluate("test", "test") if self.engine.readers["test"].steps else {}
        results = {
            **describe(self.engine),
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "steps": progress.step,
            "test": test,
            "val": progress.val,
            "logloss_sum": logloss_sum(test) if test else None,
            "train_val_seconds": progress.seconds,
            "examples_per_second": progress.examples / progress.train_seconds if progress.train_seconds else None,
            "peak_memory_bytes": peak_memory(self.ranks),
            "versions": versions(),
            "config_sha256": sha256(self.config),
        }
        if self.ranks.is_first:
            write_json(self.run / "results.json", results)
        return results


def describe(engine: Engine) -> Results:
    """The fields of ``results.json`` that say what ran where."""
    return {
        "model": engine.config.model.name,
        "dataset": engine.dataset.name,
        "world_size": engine.ranks.world_size,
        "device": engine.ranks.device.type,
        "seed": engine.config.training.seed,
    }


def peak_memory(ranks: Ranks) -> dict[str, int | None]:
    """Peak bytes of the rank that needed most: of the GPU's allocator, and resident on the host."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    device = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else None
    return {"device": None if device is None else int(ranks.max(device)), "host": int(ranks.max(host))}


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def _shown(value: float | int | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


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
    check_run(run, dataset, data)
    checkpoint = best_checkpoint(run)
    with process_group(config.training.device) as ranks:
        engine = Engine(config, data, dataset, tasks, ranks)
        if not engine.readers[split].steps:
            raise UserError(f"{data}: split '{split}' has no rows")
        checkpoints = Checkpoints(run / "checkpoints", engine.model, engine.optimizer, ranks)
        checkpoints.load(checkpoint, with_optimizer=False)
        metrics = engine.evaluate(split, split)
        return {**describe(engine), "split": split, split: metrics, "logloss_sum": logloss_sum(metrics)}
