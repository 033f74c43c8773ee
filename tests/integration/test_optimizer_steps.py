"""FBGEMM's Adam corrects the bias of its moments by the number of steps, on GPUs; on CPUs the counters are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grown import write_grown
from runs import train_here
from toy import write_toy

from recmtl.config import load_run_config
from recmtl.distributed.context import process_group
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.checkpoint_folder import best_checkpoint
from recmtl.training.runs import open_dataset, open_start
from recmtl.training.session import TrainSession
from recmtl.training.start import start_from

ROWS = {"train": 640, "val": 100, "test": 100}


def counted(optimizer: Any) -> Iterator[int]:
    """Steps of FBGEMM's modules, which TorchRec keeps where only their optimisers lead to."""
    if hasattr(optimizer, "_emb_module"):
        yield int(optimizer._emb_module.iter)
    for _, part in getattr(optimizer, "optimizers", []):
        yield from counted(part)


def test_fused_optimisers_go_on_counting_after_a_resume_and_from_one_run_to_the_next(tmp_path: Path) -> None:
    data, later, run = tmp_path / "data", tmp_path / "later", tmp_path / "run"
    write_toy(data, ROWS)
    write_grown(later, data, rows=ROWS)
    train_here(data, run, training__max_steps=6, metrics__tensorboard=False)
    config = load_run_config(run)
    with process_group("cpu") as context:
        dataset, tasks = open_dataset(data, config)
        session = TrainSession(config, data, dataset, tasks, context)
        state = Checkpoints(run / "checkpoints", session).load(best_checkpoint(run))
        assert (state.step, state.steps_before, {*counted(session.optimizer)}) == (6, 0, {6})
    with process_group("cpu") as context:
        dataset, tasks = open_dataset(later, config)
        start = open_start(run, tmp_path / "next", context)
        assert start is not None
        session = TrainSession(config, later, dataset, tasks, context)
        state = start_from(start, session, Checkpoints(tmp_path / "next" / "checkpoints", session))
        assert (state.step, state.steps_before, {*counted(session.optimizer)}) == (0, 6, {6})
