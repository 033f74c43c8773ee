"""Checkpoints: ``checkpoints/step-<n>/``, complete or absent, readable by any number of ranks.

A folder holds torch.distributed.checkpoint's files (tables, dense parameters, both optimisers, random state),
``train_state.json`` (where the run stands) and ``manifest.json`` (by which damage is found). Names beside it that begin
with a dot are on their way: ``.step-<n>.tmp`` is being written, ``.step-<n>.old`` replaced, ``.step-<n>.gone`` removed.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from recmtl.errors import UserError, is_out_of_memory
from recmtl.runtime.storage import (
    exists,
    is_folder,
    list_folder,
    make_afresh,
    os_errors,
    read_json,
    remove_folder,
    rename,
    sync_folder,
    write_whole,
)
from recmtl.training.manifest import MANIFEST, Entries, entry, find_damage
from recmtl.training.sharded import ShardedModel
from recmtl.training.storage import SafePlanner, SafeReader, Writer

TRAIN_STATE = "train_state.json"


@dataclass
class TrainState:
    """Where a run stands."""

    epoch: int = 0
    """Epochs that are complete."""
    step_in_epoch: int = 0
    """Batches of the running epoch that are done."""
    step: int = 0
    """Steps in all."""
    seconds: float = 0.0
    """Time spent in training and validation so far."""
    train_seconds: float = 0.0
    """Time spent in training alone."""
    wait_seconds: float = 0.0
    """Of these, time that this rank's host stood still for the reader."""
    checkpoint_seconds: float = 0.0
    """Time spent on checkpoints, the one being written left out."""
    examples: int = 0
    """Rows trained on."""
    best_loss: float | None = None
    """Lowest value so far of what is monitored: the validation loss, summed over tasks by the recipe's weights, or
    minus the sum of the metrics of ``metrics.monitor``, those subtracted of which lower is better."""
    best_epoch: int = 0
    """Epoch of `best_loss`, counted from 1; 0: none yet."""
    best_step: int = 0
    """Step of the checkpoint of that epoch."""
    bad_epochs: int = 0
    """Complete epochs since then."""
    val: dict[str, Any] = field(default_factory=dict)
    """Validation metrics of the best epoch."""
    val_bins: dict[str, Any] = field(default_factory=dict)
    """Its calibration bins."""
    complete: dict[str, Any] | None = None
    """The fields of `BEST` by complete epochs alone, where a part of an epoch is better than all of those; None: it is
    not. A run that goes on goes on from these, as if it had not stopped in the midst of an epoch."""
    start_from: dict[str, Any] | None = None
    """The run that this one started from: its folder's name, its data's fingerprint, the step of its checkpoint."""
    first_rows: dict[str, int] = field(default_factory=dict)
    """Rows that tables had at the start of the first run of a line of runs, each of which started from the one before:
    they set the scale of new rows. Empty in a first run."""

    def take_part_for_best(self) -> None:
        """Before a part of an epoch becomes the best: keep what the complete ones have come to."""
        self.complete = {name: getattr(self, name) for name in BEST}

    def forget_part(self) -> None:
        """The epoch that a run stopped in the midst of goes on: its part no longer counts."""
        for name, value in (self.complete or {}).items():
            setattr(self, name, value)
        self.complete = None

    def best_steps(self) -> set[int]:
        """Steps of the checkpoints that must stay: of the best model, and of what a run that goes on holds for best."""
        return {self.best_step, (self.complete or {}).get("best_step", 0)}


LATER_FIELDS = ("start_from", "first_rows")
"""Fields of `TrainState` that checkpoints of earlier versions do not have."""
BEST = ("best_loss", "best_epoch", "best_step", "val", "val_bins")
"""Fields of `TrainState` that tell the best epoch."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the run's ``checkpoints`` folder.
        session: whose model and optimisers they hold.
    """

    def __init__(self, folder: Path, session: ShardedModel) -> None:
        self.folder, self.session, self.context = folder, session, session.context
        self.saved_step: int | None = None
        """Step of the newest one."""
        self._pruning: threading.Thread | None = None

    def save(self, train_state: TrainState) -> None:
        """Write the state after `train_state.step` steps and prune older checkpoints.

        Raises:
            UserError: it cannot be written; those before are still there.
        """
        final = self.path(train_state.step)
        unfinished = self.folder / f".{final.name}.tmp"
        try:
            self.context.run_on_rank0(lambda: make_afresh(unfinished))
            try:
                dcp.save(self._state(), storage_writer=Writer(unfinished), process_group=self.context.cpu_group)
            except CheckpointException as error:
                raise UserError(_reason(error)) from None
            # Read back where it was written: it is still in this machine's memory.
            entries = self.context.gather(lambda: _entries(unfinished, f"__{self.context.rank}_*"))
            self.context.run_on_rank0(lambda: self._complete(train_state, unfinished, final, entries))
        except (UserError, MemoryError) as error:
            if self.context.is_first:
                remove_folder(unfinished, ignore_errors=True)
            if isinstance(error, MemoryError):
                raise
            raise UserError(f"{final}: cannot be written ({error}); checkpoints before it are untouched") from None
        self.saved_step = train_state.step
        if self.context.is_first:
            self._prune(train_state.best_steps())

    def _complete(self, train_state: TrainState, unfinished: Path, final: Path, entries: list[Entries]) -> None:
        """Describe what all ranks wrote and give it its name."""
        described = {**asdict(train_state), **self._kind_of_ranks(), "widths": self.session.plan.widths()}
        write_whole(unfinished / TRAIN_STATE, json.dumps(described, indent=2) + "\n")
        manifest = {name: value for part in entries for name, value in part.items()}
        manifest |= _entries(unfinished, ".metadata") | _entries(unfinished, TRAIN_STATE)
        write_whole(unfinished / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        sync_folder(unfinished)
        replaced = self.folder / f".{final.name}.old"
        if exists(final):  # the same step again: the old one goes only when the new one is there
            rename(final, replaced)
        rename(unfinished, final)
        sync_folder(self.folder)
        remove_folder(replaced, ignore_errors=True)

    def tidy(self) -> None:
        """Bring back or remove what a killed process left on its way; only the holder of the run's lock may."""
        for old in list_folder(self.folder, ".step-*.old"):
            final = self.folder / old.name[1 : -len(".old")]
            if not exists(final):
                rename(old, final)
        for left in list_folder(self.folder, ".step-*"):
            remove_folder(left)

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, and a line on each that is not and was put aside.

        Raises:
            UserError: there are some and none is whole.
        """
        said: list[str] = []
        paths = self.context.run_on_rank0(self.paths)
        for path in reversed(paths):
            damage = self.damage(path)
            if damage is None:
                self.saved_step = _step(path)
                return path, said
            aside = path.with_name(f"damaged-{path.name}")
            self.context.run_on_rank0(partial(_put_aside, path, aside))
            said.append(f"{path} is damaged ({damage}); it is now {aside.name}, and the one before it is taken")
        if paths:
            raise UserError(f"{self.folder}: no checkpoint is whole ({said[0]}); name another --run folder")
        return None, []

    def damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint; None: nothing. Every rank looks at its share of the files."""
        context = self.context
        found = context.gather(lambda: find_damage(path, context.rank, context.world_size))
        return next((damage for damage in found if damage), None)

    def load(self, path: Path, *, with_optimizer: bool = True) -> TrainState:
        """Restore a checkpoint that is whole, whatever number of ranks wrote it.

        Raises:
            UserError: row-wise optimiser state of tables that were cut otherwise, or files of another origin.
        """
        described = read_json(path / TRAIN_STATE)
        self._check_widths(path, described.pop("widths"), with_optimizer)
        kind = self._kind_of_ranks()
        same_ranks = {key: described.pop(key) for key in kind} == kind
        model, optimizer = self.session.model, self.session.optimizer
        model_state = model.state_dict()
        state: dict[str, Any] = {"model": model_state}
        if with_optimizer:
            for _, part in optimizer.optimizers[1:]:
                part.init_state()  # dense state is made at the first step; loading needs it there
            state["optimizer"] = optimizer.state_dict()
            if same_ranks:
                state |= self._random_state()
        self._read(path, state, SafePlanner())
        model.load_state_dict(model_state)
        self.session.filled = True
        if with_optimizer:
            optimizer.load_state_dict(state["optimizer"])
            if same_ranks:
                self._set_random_state(state)
        return TrainState(**described)

    def take_over(self, path: Path, planner: SafePlanner) -> TrainState:
        """Take weights and optimiser states from another run's checkpoint, as far as `planner` finds them there.

        Returns:
            Where that run stood.

        Raises:
            UserError: it is damaged, or does not fit.
        """
        refuse_damaged(path, self.damage(path))
        described = read_state(path)
        assert described is not None
        self._check_widths(path, read_json(path / TRAIN_STATE)["widths"], with_optimizer=True)
        model, optimizer = self.session.model, self.session.optimizer
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        self._read(path, state, planner)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return described

    def _read(self, path: Path, state: dict[str, Any], planner: SafePlanner) -> None:
        try:
            dcp.load(state, storage_reader=SafeReader(path), planner=planner, process_group=self.context.cpu_group)
        except CheckpointException as error:
            raise UserError(f"{path}: cannot be loaded ({_reason(error)})") from None

    def load_whole(self, path: Path) -> None:
        """Restore the model of one checkpoint, which no other can stand in for.

        Raises:
            UserError: it is damaged.
        """
        refuse_damaged(path, self.damage(path))
        self.load(path, with_optimizer=False)

    def _check_widths(self, path: Path, before: dict[str, int], with_optimizer: bool) -> None:
        """Row-wise optimisers keep one number a piece of a row: other pieces cannot take it over."""
        optimizer = self.session.config.embedding.optimizer
        if not (with_optimizer and optimizer.startswith("rowwise")):
            return
        for table, width in self.session.plan.widths().items():
            if before.get(table, width) != width:
                raise UserError(
                    f"{path}: the columns of table '{table}' were cut into pieces of {before[table]}, now of {width}, "
                    f"and {optimizer} keeps a state a piece; go on with the sharding and number of ranks it had"
                )

    def _state(self) -> dict[str, Any]:
        session = self.session
        state = {"model": session.model.state_dict(), "optimizer": session.optimizer.state_dict()}
        return state | self._random_state()

    def _kind_of_ranks(self) -> dict[str, Any]:
        """Their number and device: saved random states fit no others."""
        return {"world_size": self.context.world_size, "device": self.context.device.type}

    def _random_state(self) -> dict[str, torch.Tensor]:
        """State of this rank's random generators (dropout draws from them)."""
        state = {f"random/{self.context.rank}": torch.get_rng_state()}
        if self.context.device.type == "cuda":
            state[f"random/{self.context.rank}/cuda"] = torch.cuda.get_rng_state()
        return state

    def _set_random_state(self, state: dict[str, torch.Tensor]) -> None:
        torch.set_rng_state(state[f"random/{self.context.rank}"])
        if self.context.device.type == "cuda":
            torch.cuda.set_rng_state(state[f"random/{self.context.rank}/cuda"])

    def paths(self) -> list[Path]:
        """Checkpoints, oldest first."""
        return checkpoint_paths(self.folder)

    def path(self, step: int) -> Path:
        """The checkpoint written after `step` steps."""
        return self.folder / f"step-{step:09d}"

    def _prune(self, best_steps: set[int]) -> None:
        """Remove old checkpoints, beside the training that goes on: a large one takes its time on some systems."""
        self.finish()
        gone = []
        for path in self.paths()[: -self.session.config.checkpoint.keep]:
            if _step(path) not in best_steps:
                gone.append(rename(path, self.folder / f".{path.name}.gone"))
        self._pruning = threading.Thread(target=_remove, args=(gone,))
        self._pruning.start()

    def finish(self) -> None:
        """Wait for the pruning to end."""
        if self._pruning:
            self._pruning.join()


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        remove_folder(folder, ignore_errors=True)


def _put_aside(path: Path, aside: Path) -> None:
    remove_folder(aside, ignore_errors=True)
    rename(path, aside)


def _entries(folder: Path, pattern: str) -> Entries:
    return {path.name: entry(path) for path in list_folder(folder, pattern)}


def _reason(error: CheckpointException) -> str:
    """What went wrong on the first rank that failed, in one line.

    Raises:
        MemoryError: memory ran out, which is no matter of the checkpoint.
    """
    _, (cause, _) = min(error.failures.items())
    if is_out_of_memory(cause):
        raise MemoryError(str(cause))
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def checkpoint_paths(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    with os_errors(folder):
        return [path for path in list_folder(folder, "step-*") if is_folder(path)]


def read_state(path: Path) -> TrainState | None:
    """Where the run stood at a checkpoint; None: the file is damaged."""
    try:
        described = read_json(path / TRAIN_STATE)
        names = [
            field.name for field in fields(TrainState) if field.name in described or field.name not in LATER_FIELDS
        ]
        return TrainState(**{name: described[name] for name in names})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refuse_damaged(path: Path, damage: str | None) -> None:
    """Raise UserError if there is damage to the checkpoint of the best epoch, which no other can stand in for."""
    if damage:
        raise UserError(f"{path}: damaged ({damage}); it is the checkpoint of the best epoch, train the run again")


def best_checkpoint(run: Path) -> Path:
    """The checkpoint of a run's best epoch; the newest one when no epoch is complete.

    Raises:
        UserError: the run has none, or not that one.
    """
    paths = checkpoint_paths(run / "checkpoints")
    if not paths:
        raise UserError(f"{run}: no checkpoint in it; train the run first")
    newest = next((found for path in reversed(paths) if (found := read_state(path))), None)
    if newest is None:
        raise UserError(f"{paths[-1]}: {TRAIN_STATE} is missing or damaged")
    best = run / "checkpoints" / f"step-{newest.best_step:09d}" if newest.best_step else paths[-1]
    if best not in paths:
        raise UserError(f"{best}: missing; it is the checkpoint of the best epoch")
    return best
