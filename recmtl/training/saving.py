"""Checkpoints written while training goes on, one at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from recmtl.distributed.context import is_lost_rank
from recmtl.errors import Stopped, UserError
from recmtl.runtime.storage import remove_folder, write_whole
from recmtl.training.checkpoint_folder import checkpoint_path, give_name, make_unfinished, prune, unfinished_path
from recmtl.training.manifest import MANIFEST, Checksum, Entries
from recmtl.training.session_state import kind_of_ranks, session_state
from recmtl.training.sharded import ShardedModel
from recmtl.training.staging import Buffers, StagedPlanner
from recmtl.training.storage import Writer, reason
from recmtl.training.train_state import TRAIN_STATE, TrainState


class CheckpointWriter:
    """Writes the checkpoints of one run.

    A save copies this rank's part of the state into the host's memory, which training waits for, and a thread writes
    the copy. One is written at a time: a save that comes before the last one is written waits for it. The threads of
    all ranks meet in a process group of their own, so that nothing they exchange gets between what training exchanges.

    To be used as a context: an error in it goes on when what is being written is, too.

    Args:
        folder: the run's ``checkpoints`` folder.
        session: whose model and optimisers they hold.
        on_failure: called in the thread when a checkpoint cannot be written; `wait` raises why.
        check_held: raises UserError if this process may no longer write to the folder.
    """

    def __init__(
        self,
        folder: Path,
        session: ShardedModel,
        on_failure: Callable[[], None],
        check_held: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.session, self.on_failure, self.check_held = folder, session, on_failure, check_held
        self.context = session.context.in_new_group()
        self.saved_step: int | None = None
        """Step of the newest checkpoint, which may still be on its way."""
        self._buffers: Buffers | None = {} if session.config.checkpoint.background else None
        self._writing: _Writing | None = None

    def save(self, train_state: TrainState) -> None:
        """Begin to write the state after `train_state.step` steps; older checkpoints go when it is written.

        Raises:
            UserError: the one before could not be written, or without ``checkpoint.background`` this one.
        """
        self.wait()
        context, plan = self.context, self.session.plan
        described = {**asdict(train_state), **kind_of_ranks(context), "widths": plan.widths()}
        best_steps = train_state.best_steps()
        planner = StagedPlanner(session_state(self.session), context.is_first, self._buffers)
        self.saved_step = train_state.step
        final = checkpoint_path(self.folder, train_state.step)
        self._writing = _Writing(lambda: self._write(planner, described, best_steps, final), self.on_failure)
        if self._buffers is None:
            self.wait()

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            UserError: it cannot be written; the checkpoints before it are still there.
        """
        writing, self._writing = self._writing, None
        if writing:
            writing.wait()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None or isinstance(error, Stopped):
            self.wait()  # a run that stops because a checkpoint could not be written says why
        elif isinstance(error, Exception) and not is_lost_rank(error) and self._writing:
            self._writing.join()  # the error comes first; without the rank that is lost this could take long

    def _write(self, planner: StagedPlanner, described: dict[str, Any], best_steps: set[int], final: Path) -> None:
        """In the thread: write the folder, have all ranks say what they wrote, give the folder its name."""
        context, unfinished = self.context, unfinished_path(final)
        try:
            context.run_on_rank0(lambda: self._begin(final))
            writer = Writer(unfinished)
            try:
                dcp.save({}, storage_writer=writer, planner=planner, process_group=context.cpu_group)
            except CheckpointException as error:
                raise UserError(reason(error)) from None
            entries = context.gather(lambda: writer.entries)
            context.run_on_rank0(lambda: self._complete(described, unfinished, final, entries))
        except (UserError, MemoryError) as error:
            if context.is_first:
                remove_folder(unfinished, ignore_errors=True)
            if isinstance(error, MemoryError):
                raise
            raise UserError(f"{final}: cannot be written ({error}); checkpoints before it are untouched") from None
        if context.is_first:
            prune(self.folder, self.session.config.checkpoint.keep, best_steps)

    def _begin(self, final: Path) -> None:
        self.check_held()
        make_unfinished(final)

    def _complete(self, described: dict[str, Any], unfinished: Path, final: Path, entries: list[Entries]) -> None:
        """Describe what all ranks wrote and give it its name."""
        state, checksum = json.dumps(described, indent=2) + "\n", Checksum()
        write_whole(unfinished / TRAIN_STATE, state)
        checksum.add(state.encode())
        manifest = {name: value for part in entries for name, value in part.items()} | {TRAIN_STATE: checksum.entry()}
        self.check_held()
        write_whole(unfinished / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        give_name(unfinished, final)


class _Writing(threading.Thread):
    """A call in a thread, whose error is for who waits for its end. The process may end without it."""

    def __init__(self, write: Callable[[], None], on_failure: Callable[[], None]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._write, self._on_failure = write, on_failure
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # raised again by `wait`
            self._error = error
            self._on_failure()

    def wait(self) -> None:
        self.join()
        if self._error:
            raise self._error
