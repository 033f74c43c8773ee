"""Checkpoints of a run, read: the newest that is whole, and into a model on any number of ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from recmtl.errors import UserError
from recmtl.runtime.storage import read_json
from recmtl.training.checkpoint_folder import checkpoint_paths, put_aside
from recmtl.training.manifest import find_damage
from recmtl.training.session_state import kind_of_ranks, random_state, set_random_state
from recmtl.training.sharded import ShardedModel
from recmtl.training.storage import SafePlanner, SafeReader, reason
from recmtl.training.train_state import TRAIN_STATE, TrainState, read_state


class Checkpoints:
    """The checkpoints of one run, to be read.

    Args:
        folder: the run's ``checkpoints`` folder.
        session: whose model and optimisers they are read into.
    """

    def __init__(self, folder: Path, session: ShardedModel) -> None:
        self.folder, self.session, self.context = folder, session, session.context

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, and a line on each that is not and was put aside.

        Raises:
            UserError: there are some and none is whole.
        """
        said: list[str] = []
        paths = self.context.run_on_rank0(lambda: checkpoint_paths(self.folder))
        for path in reversed(paths):
            damage = self.damage(path)
            if damage is None:
                return path, said
            aside = path.with_name(f"damaged-{path.name}")
            self.context.run_on_rank0(partial(put_aside, path, aside))
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
        kind = kind_of_ranks(self.context)
        same_ranks = {key: described.pop(key) for key in kind} == kind
        model, optimizer = self.session.model, self.session.optimizer
        model_state = model.state_dict()
        state: dict[str, Any] = {"model": model_state}
        if with_optimizer:
            for _, part in optimizer.optimizers[1:]:
                part.init_state()  # dense state is made at the first step; loading needs it there
            state["optimizer"] = optimizer.state_dict()
            if same_ranks:
                state |= random_state(self.context)
        self._read(path, state, SafePlanner())
        model.load_state_dict(model_state)
        self.session.filled = True
        train_state = TrainState(**described)
        if with_optimizer:
            self._load_optimizer(state["optimizer"], train_state)
            if same_ranks:
                set_random_state(self.context, state)
        return train_state

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
        self._load_optimizer(state["optimizer"], described)
        return described

    def _load_optimizer(self, state: dict[str, Any], train_state: TrainState) -> None:
        """Give the optimisers their states. Of FBGEMM's Adam the number of steps, by which it corrects the bias of its
        moments, is in none of them.
        """
        optimizer = self.session.optimizer
        optimizer.load_state_dict(state)
        optimizer.set_optimizer_step(train_state.steps_before + train_state.step)

    def _read(self, path: Path, state: dict[str, Any], planner: SafePlanner) -> None:
        try:
            dcp.load(state, storage_reader=SafeReader(path), planner=planner, process_group=self.context.cpu_group)
        except CheckpointException as error:
            raise UserError(f"{path}: cannot be loaded ({reason(error)})") from None

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


def refuse_damaged(path: Path, damage: str | None) -> None:
    """Raise UserError if there is damage to the checkpoint of the best epoch, which no other can stand in for."""
    if damage:
        raise UserError(f"{path}: damaged ({damage}); it is the checkpoint of the best epoch, train the run again")
