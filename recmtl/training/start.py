"""A run that starts from another one, as today's from yesterday's: what it takes over and what begins anew."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recmtl.config import Config, check_starts, find_model
from recmtl.data.difference import encoding_difference, recipe_difference
from recmtl.distributed.parallel import copy_row, draw_rows
from recmtl.encoding.generations import later_ids
from recmtl.errors import UserError
from recmtl.models.embeddings import table_name, table_of
from recmtl.models.ranking_model import RankingModel
from recmtl.optim.replicated import ReplicatedTables
from recmtl.runtime.private_api import ShardedTensor
from recmtl.runtime.storage import real_path
from recmtl.schema import UNSEEN, Dataset, Task
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.growth import GrowthPlanner
from recmtl.training.session import TrainSession
from recmtl.training.train_state import TrainState

OF_TASKS = ("kind", "parent", "relation", "conditional")
"""Fields of a task that say what its tower predicts."""


@dataclass(frozen=True)
class Start:
    """The run that another one starts from.

    Args:
        run: its folder.
        config: its configuration.
        dataset: what it was trained on.
        checkpoint: of its best epoch.
    """

    run: Path
    config: Config
    dataset: Dataset
    checkpoint: Path

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks it was trained on."""
        return self.dataset.select_tasks(tuple(self.config.training.tasks))

    def check(self, config: Config, data: Path, dataset: Dataset, tasks: tuple[Task, ...]) -> None:
        """Refuse a run that cannot start from this one.

        Args:
            config: of the run to start.
            data: the prepared folder to train it on.
            dataset: what that holds.
            tasks: to train.

        Raises:
            UserError: features, or the columns of a history, are not those of this run, the data's encoding did not
                grow from this run's, sizes or optimisers differ, or the tasks do not begin with this run's.
        """
        if difference := recipe_difference(self.dataset, dataset):
            raise UserError(
                f"{data}: not what {self.run} was trained on: {difference}; extend the data of that run by its own "
                "recipe (prepare --extend), or train anew without --start-from"
            )
        if difference := encoding_difference(self.dataset, dataset):
            raise UserError(
                f"{data}: encoded otherwise than what {self.run} was trained on: {difference}; "
                "prepare it by --extend with the data of that run"
            )
        check_starts(self.run / "config.toml", config)
        for place, before in enumerate(self.tasks):
            if place >= len(tasks) or tasks[place].name != before.name:
                names = ", ".join(task.name for task in self.tasks)
                raise UserError(
                    f"training.tasks: {self.run} was trained on {names}; train these first, in that order, then others"
                )
            for key in OF_TASKS:
                old, new = getattr(before, key), getattr(tasks[place], key)
                if old != new:
                    raise UserError(
                        f"{data}: task '{before.name}': {key} {old}, now {new}, so that {self.run} predicts something "
                        "else; train anew"
                    )

    def describe(self) -> dict[str, object]:
        """What ``results.json`` says of it."""
        step = int(self.checkpoint.name.removeprefix("step-"))
        return {"run": real_path(self.run).name, "data_fingerprint": self.dataset.data_fingerprint, "step": step}


def start_from(start: Start, session: TrainSession, checkpoints: Checkpoints) -> TrainState:
    """Give a session's model the weights and optimiser states of another run, and what is new its initial ones.

    Rows of ids that got their value after that run was trained, new ones and reused ones, begin as
    ``embedding.new_rows`` says, their optimiser state 0. So do features and tasks that are new, as in any run.

    Returns:
        Where the new run stands: at its first step.

    Raises:
        UserError: the checkpoint is damaged, or a parameter has another shape for another reason than growth.
    """
    config, dataset = session.config, session.dataset
    _begin_dense_states(session)
    with torch.device("meta"):
        old, new = (
            RankingModel.from_config(config, data, tasks)
            for data, tasks in ((start.dataset, start.tasks), (dataset, session.tasks))
        )
    width = new.embeddings.width
    columns = _places(old.embeddings.columns, new.embeddings.columns)
    if len(columns) == width and columns != sorted(columns):
        raise UserError(f"{session.data}: features are in another order than those that {start.run} was trained on")
    crossed = _places(old.dense.inputs.columns, new.dense.inputs.columns)
    tasks = len(start.tasks), len(session.tasks)
    planner = GrowthPlanner(columns, width, tasks, crossed, new.dense.inputs.width, _new(start, session))
    before = checkpoints.take_over(start.checkpoint, planner)
    session.draw_tables(planner.stored_rows)
    planner.finish()
    rows = {table.name: table.rows for table in (*dataset.tables, *start.dataset.tables)} | before.first_rows
    _begin_rows(start, session, rows)
    return TrainState(start_from=start.describe(), steps_before=before.steps_before + before.step, first_rows=rows)


def _places(old: Mapping[str, slice], new: Mapping[str, slice]) -> list[int]:
    """For every column that there was, where it is now."""
    return [column for name in old for column in range(new[name].start, new[name].stop)]


def _new(start: Start, session: TrainSession) -> str:
    """The features and tasks that a run has and the one that it starts from had not, in words; empty: none."""
    known = {feature.name for feature in start.dataset.features}
    found = [f"feature '{f.name}'" for f in session.dataset.features if f.name not in known]
    return ", ".join([*found, *(f"task '{task.name}'" for task in session.tasks[len(start.tasks) :])])


def _begin_dense_states(session: TrainSession) -> None:
    """Give the dense optimisers their states, all 0. PyTorch makes them in a step, which may move what it decays."""
    for _, part in session.optimizer.optimizers[1:]:
        if isinstance(part, ReplicatedTables):
            continue  # its states are there from the start
        drawn = [parameter.detach().clone() for parameter in part.params.values()]
        part.init_state()
        with torch.no_grad():
            for parameter, value in zip(part.params.values(), drawn, strict=True):
                parameter.copy_(value)
            for states in part.state.values():
                for state in states.values():
                    state.zero_()


def _begin_rows(start: Start, session: TrainSession, rows: dict[str, int]) -> None:
    """Give rows whose ids are later than a run their initial values, and their optimiser state 0.

    Args:
        start: that run.
        session: with the tables.
        rows: of every table where its line of runs began.
    """
    config = session.config
    later = later_ids(session.data, session.dataset, start.dataset)
    if not later:
        return
    sets = find_model(config.model.name).load().table_sets(config.model, session.tasks)
    copies = {table_name(table, table_set, sets): table for table in later for table_set in sets}
    chosen = {copy: later[table] for copy, table in copies.items()}
    if config.embedding.new_rows == "unseen":
        copy_row(session.model, chosen, UNSEEN)
    else:
        bounds = {copy: config.embedding.init_scale / math.sqrt(rows[table]) for copy, table in copies.items()}
        draw_rows(session.model, chosen, config.training.seed, bounds, getattr(torch, config.embedding.dtype))
    for key, states in session.optimizer.state_dict()["state"].items():
        if (table := table_of(key)) in chosen:
            for state in states.values():
                _clear_rows(state, chosen[table])


def _clear_rows(state: Tensor | ShardedTensor, chosen: np.ndarray) -> None:
    """Set an optimiser's state of some rows [R] to 0: [R, D], or [n R] of n pieces of columns one after the other."""
    if len(state.size()) == 0 or state.size()[0] % len(chosen):
        return  # no state of rows, but of the whole table
    if isinstance(state, ShardedTensor):
        pieces = [(shard.tensor, shard.metadata.shard_offsets[0]) for shard in state.local_shards()]
    else:
        pieces = [(state, 0)]
    for piece, offset in pieces:
        first = offset % len(chosen)
        piece[torch.from_numpy(chosen[first : first + len(piece)]).to(piece.device)] = 0
