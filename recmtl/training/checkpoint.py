"""Checkpoints: ``checkpoints/step-<n>/``, complete or absent, readable by any number of ranks.

A folder holds torch.distributed.checkpoint's files (tables, dense parameters, both optimisers, random state) and
``progress.json`` (where the run stands). It is written beside, as ``.step-<n>.tmp``, and renamed when all is there.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from recmtl.distributed.ranks import Ranks
from recmtl.errors import UserError

PROGRESS = "progress.json"


@dataclass
class Progress:
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
    """Lowest validation loss so far: the sum over tasks, in nats."""
    best_epoch: int = 0
    """Epoch of `best_loss`, counted from 1; 0: none yet."""
    best_step: int = 0
    """Step of the checkpoint of that epoch."""
    bad_epochs: int = 0
    """Epochs since then."""
    val: dict[str, Any] = field(default_factory=dict)
    """Validation metrics of the best epoch."""
    val_bins: dict[str, Any] = field(default_factory=dict)
    """Its calibration bins."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the run's ``checkpoints`` folder.
        model: the sharded model.
        optimizer: its optimisers.
        ranks: this process.
        keep: how many of the newest to keep beside the best.
    """

    def __init__(
        self, folder: Path, model: nn.Module, optimizer: CombinedOptimizer, ranks: Ranks, keep: int = 2
    ) -> None:
        self.folder, self.model, self.optimizer, self.ranks, self.keep = folder, model, optimizer, ranks, keep

    def save(self, progress: Progress) -> None:
        """Write the state after `progress.step` steps and prune older checkpoints."""
        final = self.folder / f"step-{progress.step:09d}"
        partial = self.folder / f".{final.name}.tmp"
        if self.ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.ranks.barrier()
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= self._random_state()
        dcp.save(state, checkpoint_id=partial)
        if self.ranks.is_first:
            described = {**asdict(progress), **self._kind_of_ranks()}
            (partial / PROGRESS).write_text(json.dumps(described, indent=2) + "\n")
            replaced = self.folder / f".{final.name}.old"
            if final.exists():  # the same step again: the old one goes only when the new one is there
                final.rename(replaced)
            partial.rename(final)
            shutil.rmtree(replaced, ignore_errors=True)
            self._prune(progress.best_step)
        self.ranks.barrier()

    def load(self, path: Path, *, with_optimizer: bool = True) -> Progress:
        """Restore a checkpoint into the model, whatever number of ranks wrote it."""
        described = json.loads((path / PROGRESS).read_text())
        kind = self._kind_of_ranks()
        same_ranks = {key: described.pop(key, None) for key in kind} == kind
        model_state = self.model.state_dict()
        state: dict[str, Any] = {"model": model_state}
        if with_optimizer:
            for _, optimizer in self.optimizer.optimizers[1:]:
                optimizer.init_state()  # dense state is made at the first step; loading needs it there
            state["optimizer"] = self.optimizer.state_dict()
            if same_ranks:
                state |= self._random_state()
        dcp.load(state, checkpoint_id=path)
        self.model.load_state_dict(model_state)
        if with_optimizer:
            self.optimizer.load_state_dict(state["optimizer"])
            if same_ranks:
                self._set_random_state(state)
        return Progress(**described)

    def _kind_of_ranks(self) -> dict[str, Any]:
        """Their number and device: saved random states fit no others."""
        return {"world_size": self.ranks.world_size, "device": self.ranks.device.type}

    def _random_state(self) -> dict[str, torch.Tensor]:
        """State of this rank's random generators (dropout draws from them)."""
        state = {f"random/{self.ranks.rank}": torch.get_rng_state()}
        if self.ranks.device.type == "cuda":
            state[f"random/{self.ranks.rank}/cuda"] = torch.cuda.get_rng_state()
        return state

    def _set_random_state(self, state: dict[str, torch.Tensor]) -> None:
        torch.set_rng_state(state[f"random/{self.ranks.rank}"])
        if self.ranks.device.type == "cuda":
            torch.cuda.set_rng_state(state[f"random/{self.ranks.rank}/cuda"])

    def paths(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return checkpoint_paths(self.folder)

    def path(self, step: int) -> Path:
        """The checkpoint written after `step` steps."""
        return self.folder / f"step-{step:09d}"

    def _prune(self, best_step: int) -> None:
        paths = self.paths()
        for path in paths[: -self.keep]:
            if path != self.path(best_step):
                shutil.rmtree(path)


def checkpoint_paths(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{PROGRESS}"))


def best_checkpoint(run: Path) -> Path:
    """The checkpoint of a run's best epoch; the newest one when no epoch is complete.

    Raises:
        UserError: the run has none.
    """
    paths = checkpoint_paths(run / "checkpoints")
    if not paths:
        raise UserError(f"{run}: no checkpoint in it; train the run first")
    best = json.loads((paths[-1] / PROGRESS).read_text())["best_step"]
    return next((path for path in paths if path.name == f"step-{best:09d}"), paths[-1])
