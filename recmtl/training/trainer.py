"""The loop: load, step, log, validate, checkpoint; then test the best model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from recmtl.config import TrainingConfig, sha256, to_toml
from recmtl.data.read.batch import Batch
from recmtl.data.read.prefetcher import Prefetcher
from recmtl.errors import Stopped, UserError
from recmtl.metrics.collect import Measured
from recmtl.objectives.train_module import Output
from recmtl.optim.schedule import Schedule
from recmtl.runtime.folders import link_folder
from recmtl.runtime.progress import Progress
from recmtl.runtime.storage import is_folder, os_errors, read_text, remove, write_json, write_whole
from recmtl.runtime.versions import versions
from recmtl.schema import ENCODER, RECIPE, VOCABULARIES
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.checkpoint_folder import checkpoint_path, checkpoint_step, tidy
from recmtl.training.evaluation import logloss_sum, validation_loss, weighted_sum
from recmtl.training.results import RESULTS, Results, describe, peak_memory
from recmtl.training.saving import CheckpointWriter
from recmtl.training.session import DIVERGED, TrainSession
from recmtl.training.start import Start, start_from
from recmtl.training.stopping import StopRequest
from recmtl.training.tracking import Tracker
from recmtl.training.train_state import TrainState


def is_done(state: TrainState, training: TrainingConfig) -> bool:
    """Whether a run that stands there is at its end."""
    return (
        state.epoch >= training.max_epochs
        or bool(training.max_steps and state.step >= training.max_steps)
        or bool(training.patience and state.bad_validations >= training.patience)
    )


class Trainer:
    """Trains one model.

    Args:
        session: the sharded model and its data.
        run: the run folder, which this process holds.
        start: the run to start from, where there is no checkpoint to go on from; None: from new weights.
        check_held: raises UserError if this process no longer holds the run folder.
    """

    def __init__(
        self,
        session: TrainSession,
        run: Path,
        start: Start | None = None,
        check_held: Callable[[], None] = lambda: None,
    ) -> None:
        self.session, self.run, self.config, self.context = session, run, session.config, session.context
        self.checkpoints = Checkpoints(run / "checkpoints", session)
        self.schedule = Schedule(session.optimizer, session.config.training, session.readers["train"].steps)
        self.start, self.check_held = start, check_held
        self.stopping = StopRequest(session.context)
        self.writer = CheckpointWriter(self.checkpoints.folder, session, self.stopping.ask, check_held)
        self.state = TrainState()

    def fit(self) -> Results:
        """Train until the configuration says stop, test the best model, write ``results.json``.

        Raises:
            UserError: the data cannot be read, and the message names file and column;
                or a checkpoint cannot be written.
            Stopped: SIGTERM came; a checkpoint is written.
        """
        self._resume()
        if self.context.is_first:
            self._describe_run()
        with (
            self.stopping,
            Tracker(
                self.run,
                enabled=self.context.is_first,
                tensorboard=self.config.metrics.tensorboard,
                step=self.state.step,
                check_held=self.check_held,
            ) as self.tracker,
            self.writer,
        ):
            self.tracker.describe(self.state.step, to_toml(self.config))
            try:
                if self._is_unmeasured():
                    self._train_and_validate()
                while not is_done(self.state, self.config.training):
                    self._train_and_validate()
            except Stopped:
                step = self.state.step
                if self.writer.saved_step != step:
                    self._save()
                self.writer.wait()
                raise Stopped(f"{self.run}: stopped and saved after step {step}; the same command goes on") from None
            return self._finish()

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is whole, or begin."""
        checkpoints = self.checkpoints
        self.context.run_on_rank0(lambda: tidy(checkpoints.folder))
        newest, damaged = checkpoints.newest()
        for line in damaged:
            self.context.print_rank0(line)
        if not newest:
            if self.start:
                self.state = start_from(self.start, self.session, checkpoints)
            else:
                self.session.draw_tables()
            return
        self.state = state = checkpoints.load(newest)
        self.writer.saved_step = checkpoint_step(newest)
        if not is_done(state, self.config.training):
            state.forget_part()
        best = checkpoint_path(checkpoints.folder, state.best_step)
        if state.best_step and best != newest and (damage := checkpoints.damage(best)):
            self.context.print_rank0(f"{best} is damaged ({damage}); the best model is sought among those to come")
            state.best_loss, state.best_epoch, state.best_step = None, 0, 0
            state.val, state.val_bins = {}, {}

    def _is_unmeasured(self) -> bool:
        """Whether the run was stopped between its last step of ``training.max_steps`` and the end of its validation."""
        state, most = self.state, self.config.training.max_steps
        at_end = bool(most) and state.step == most and bool(state.step_in_epoch)
        # A part of an epoch that is not the best leaves no trace: to measure it again changes nothing.
        return at_end and state.step not in (state.validated_step, state.best_step)

    def _describe_run(self) -> None:
        """Write what the run is from here on; results of where it stood before would no longer be its own."""
        with os_errors(self.run):
            remove(self.run / RESULTS)
            write_whole(self.run / "config.toml", to_toml(self.config))
            write_json(self.run / "plan.json", self.session.plan.to_json())
            self.session.dataset.save(self.run)
            # With these, the run is all that it takes to score new raw files.
            if is_folder(self.session.data / ENCODER):
                for folder in (ENCODER, VOCABULARIES):
                    link_folder(self.session.data / folder, self.run / folder)
                write_whole(self.run / RECIPE, read_text(self.session.data / RECIPE))

    def _train_and_validate(self) -> None:
        """Train to the next validation, of an epoch or within, or the last step allowed; validate and checkpoint."""
        self._train(self._next_stop())
        state, config = self.state, self.config
        epoch, complete = state.epoch + 1, state.step_in_epoch == self.session.readers["train"].steps
        better = True
        if self.session.readers["val"].steps:
            every = config.training.validate_every_steps
            better = self._validate(epoch, counts=complete or (bool(every) and state.step % every == 0))
        else:
            state.best_epoch, state.best_step = epoch, state.step
        if complete:
            state.epoch, state.step_in_epoch = epoch, 0
            self.session.weighting.end_epoch()
        every = config.checkpoint.every_steps
        if complete or better or is_done(state, config.training) or (every and state.step % every == 0):
            self._save()

    def _next_stop(self) -> int:
        """The step of the running epoch to train to."""
        training, state, readers = self.config.training, self.state, self.session.readers
        stops = [readers["train"].steps]
        if training.max_steps:
            stops.append(state.step_in_epoch + training.max_steps - state.step)
        if training.validate_every_steps and readers["val"].steps:
            ahead = -state.step % training.validate_every_steps
            # At 0 a run goes on that was stopped before it had validated, or it has.
            if not ahead and (not state.step_in_epoch or state.validated_step == state.step):
                ahead = training.validate_every_steps
            stops.append(state.step_in_epoch + ahead)
        return min(stops)

    def _train(self, stop: int) -> None:
        """Train until the running epoch has come to the step `stop`."""
        config, session, state = self.config, self.session, self.state
        reader = session.readers["train"]
        if config.embedding.reinitialize and state.epoch and not state.step_in_epoch:
            session.renew_tables(state.epoch)
        losses, observed = torch.zeros(2, len(session.tasks), device=self.context.device)
        self.stopping.restart()
        logged_examples, logged = state.examples, time.monotonic()
        began = logged
        with (
            Prefetcher(reader.batches(state.epoch, state.step_in_epoch, stop), config.reader.prefetch) as batches,
            Progress(enabled=self.context.is_first, timed=False) as bar,
            bar.stage(f"epoch {state.epoch + 1}", stop, done=state.step_in_epoch, unit="step") as advance,
        ):
            for step_in_epoch in range(state.step_in_epoch, stop):
                step = self.train_step(batches)
                losses += step.losses
                observed += step.observed
                state.examples += reader.rows_in_step(step_in_epoch)
                every, last = config.checkpoint.every_steps, step_in_epoch + 1 == stop
                save = bool(every) and state.step % every == 0 and not last
                stopped = self.stopping.agreed()
                note = None
                # Also before a checkpoint: no window of losses is cut in two, and a broken state is not saved.
                if state.step % config.metrics.every_steps == 0 or save or last or stopped:
                    # The only place in the loop where the host waits for the device.
                    total = self.context.sum(losses) / self.context.world_size
                    session.weighting.observe(total, observed)
                    mean = total / observed.clamp(min=1)
                    now = time.monotonic()
                    note = self._log(mean.tolist(), (state.examples - logged_examples) / (now - logged))
                    logged_examples, logged = state.examples, now
                    losses.zero_()
                    observed.zero_()
                advance(step_in_epoch + 1, note)
                if stopped:
                    self._spent(began, batches)
                    raise Stopped
                if save:
                    self._spent(began, batches)
                    self._save()
                    began = logged = time.monotonic()
        self._spent(began, batches)

    def train_step(self, batches: Iterator[Batch]) -> Output:
        """Train on the next batch; what it returns lies on the device."""
        state, session = self.state, self.session
        self.schedule.set(state.step)
        session.weighting.step = state.step
        output = session.run_batch(batches)  # forward, backward and both optimisers, in a pipeline
        state.step, state.step_in_epoch = state.step + 1, state.step_in_epoch + 1
        return output

    def _spent(self, began: float, batches: Prefetcher) -> None:
        """Book the time since `began` as training, and what it waited for the reader since the last call."""
        if self.context.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - began
        self.state.seconds += seconds
        self.state.train_seconds += seconds
        self.state.wait_seconds += batches.waited
        batches.waited = 0.0

    def _save(self) -> None:
        began = time.monotonic()
        self.context.run_on_rank0(self.tracker.publish)
        self.writer.save(self.state)
        self.state.checkpoint_seconds += time.monotonic() - began

    def _log(self, losses: list[float], rate: float) -> str:
        """Write the mean losses since the last line; returns what to show beside the bar."""
        names = [task.name for task in self.session.tasks]
        values = {f"loss/{name}": value for name, value in zip(names, losses, strict=True)}
        loss = weighted_sum(self.session.tasks, dict(zip(names, losses, strict=True)))
        weights = zip(self.session.tasks, self.session.weighting.weights().tolist(), strict=True)
        values |= {f"weight/{task.name}": value for task, value in weights}
        if not math.isfinite(sum(losses)):
            raise UserError(f"the loss is {loss} at step {self.state.step}; {DIVERGED}")
        config, scale = self.config, self.schedule.scale
        values |= {"lr/dense": config.dense.lr * scale, "lr/embedding": config.embedding.lr * scale}
        self.tracker.log(
            self.state.step, {"epoch": self.state.epoch + 1, "loss": loss, **values, "examples_per_second": rate}
        )
        return f"loss {loss:.4f}  {rate:,.0f} examples/s"

    def _validate(self, epoch: int, *, counts: bool) -> bool:
        """Measure the validation split after epoch `epoch`, counted from 1, or a part of it.

        The model of a part at which training only stops may be the best so far and be tested, but does not count: for
        patience, and when the run goes on.

        Args:
            epoch: the running one.
            counts: the validation is one of those that the configuration asks for.

        Returns:
            Whether the model is the best so far.
        """
        state = self.state
        began = time.monotonic()
        self.stopping.restart()
        metrics, bins, _ = self.session.evaluate("val", f"epoch {epoch} validation", self.stopping.agreed)
        monitor, loss = self.session.selection.monitor, validation_loss(self.session.tasks, metrics)
        cost = monitor.cost(metrics)
        # Without anything to go by, the newest model counts as the best, as it does without validation rows.
        better = cost is None or state.best_loss is None or cost < state.best_loss
        if counts:
            state.bad_validations = 0 if better else state.bad_validations + 1
            state.validated_step = state.step
        elif better:
            state.take_part_for_best()
        if better:
            state.best_loss, state.val, state.val_bins = cost, metrics, bins
            state.best_epoch, state.best_step = epoch, state.step
        state.seconds += time.monotonic() - began
        monitored = {"val/monitor": -cost} if monitor.metrics and cost is not None else {}
        self.tracker.log_metrics(state.step, "val", metrics, epoch=epoch, **{"val/loss": loss}, **monitored)
        shown = [f"{name} {value:.4f}" for name, value in monitor.describe(metrics).items()] or [
            f"{task} AUC {_shown(values['auc'])}" if "auc" in values else f"{task} MAE {_shown(values['mae'])}"
            for task, values in metrics.items()
        ]
        best = "  (best so far)" if better else ""
        where = f"epoch {epoch}" if state.step_in_epoch == self.session.readers["train"].steps else f"step {state.step}"
        self.tracker.say(f"{where}  validation loss {loss:.4f}  {'  '.join(shown)}{best}")
        return better

    def _finish(self) -> Results:
        state = self.state
        if state.best_step and state.best_step != state.step:
            self.checkpoints.load_whole(checkpoint_path(self.checkpoints.folder, state.best_step))
        self.stopping.restart()
        began = time.monotonic()
        rows = self.session.readers["test"].steps
        test, test_bins, segments = (
            self.session.evaluate("test", "test", self.stopping.agreed, by_segment=True)
            if rows
            else Measured({}, {}, {})
        )
        if test:
            self.tracker.log_metrics(state.step, "test", test, epoch=state.best_epoch)
        tested = time.monotonic()
        self.writer.wait()
        state.checkpoint_seconds += time.monotonic() - tested
        seconds = {
            "train": state.train_seconds,
            "data_wait": self.context.max(state.wait_seconds),
            "validation": state.seconds - state.train_seconds,
            "checkpoint": state.checkpoint_seconds,
            "test": tested - began,
        }
        results = {
            **describe(self.session),
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "steps": state.step,
            "start_from": state.start_from,
            "test": test,
            "val": state.val,
            "logloss_sum": logloss_sum(test) if test else None,
            "calibration_bins": {"test": test_bins, "val": state.val_bins},
            "segments": {"test": segments},
            "train_val_seconds": state.seconds,
            "seconds": seconds,
            "examples_per_second": state.examples / state.train_seconds if state.train_seconds else None,
            "peak_memory_bytes": peak_memory(self.context),
            "versions": versions(),
            "config_sha256": sha256(self.config),
        }
        self.context.run_on_rank0(lambda: self._write_results(results))
        return results

    def _write_results(self, results: Results) -> None:
        self.check_held()
        write_json(self.run / RESULTS, results)


def _shown(value: float | int | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
