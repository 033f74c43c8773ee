"""What a checkpoint is written from, and the checksums made while it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from recmtl.training.manifest import entry
from recmtl.training.staging import Buffers, StagedPlanner
from recmtl.training.storage import BLOCK_BYTES, SafePlanner, SafeReader, Writer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def state(value: float) -> dict[str, Any]:
    whole = torch.full((8, 4), value)
    return {"model": {"table": torch.full((1000, 3), value), "part": whole[2:5]}, "plain": {"lr": value}}


def save(planner: StagedPlanner, folder: Path) -> Writer:
    writer = Writer(folder)
    dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
    return writer


def load(folder: Path) -> dict[str, Any]:
    found = state(0.0)
    dcp.load(found, storage_reader=SafeReader(folder), planner=SafePlanner(), no_dist=True)
    return found


def test_what_is_written_is_the_state_at_the_time_of_the_copy(tmp_path):
    buffers: Buffers = {}
    now = state(1.0)
    staged = StagedPlanner(now, True, buffers)
    now["model"]["table"].fill_(2.0)
    now["model"]["part"].fill_(2.0)
    now["plain"]["lr"] = 2.0
    save(staged, tmp_path / "staged")
    save(StagedPlanner(now, True, None), tmp_path / "as it is")
    for folder, value in (("staged", 1.0), ("as it is", 2.0)):
        found = load(tmp_path / folder)
        assert found["model"]["table"].unique().tolist() == [value]
        assert found["model"]["part"].unique().tolist() == [value]
        assert found["plain"]["lr"] == value


def test_the_memory_of_one_copy_serves_the_next(tmp_path):
    buffers: Buffers = {}
    StagedPlanner(state(1.0), True, buffers)
    places = {index: buffer.data_ptr() for index, buffer in buffers.items()}
    assert sum(buffer.nbytes for buffer in buffers.values()) == 4 * (3000 + 12)
    staged = StagedPlanner(state(3.0), True, buffers)
    assert {index: buffer.data_ptr() for index, buffer in buffers.items()} == places
    save(staged, tmp_path / "again")
    assert load(tmp_path / "again")["model"]["table"].unique().tolist() == [3.0]


def test_without_a_copy_nothing_is_copied_for_being_a_part_of_other_memory():
    now = state(1.0)
    planner = StagedPlanner(now, True, None)
    [item] = [item for item in planner.create_local_plan().items if item.index.fqn == "model.part"]
    written = planner.resolve_data(item)
    assert written.data_ptr() == now["model"]["part"].data_ptr()
    assert written.untyped_storage().nbytes() == written.nbytes == 4 * 12


def test_checksums_made_while_writing_are_those_of_the_files(tmp_path):
    large = {"table": torch.rand(BLOCK_BYTES // 16, 5), "plain": list(range(1000))}
    entries = save(StagedPlanner(large, True, {}), tmp_path / "step").entries
    written = sorted((tmp_path / "step").iterdir())
    assert [path.name for path in written] == [".metadata", "__0_0.distcp"]
    assert entries == {path.name: entry(path) for path in written}
    assert torch.serialization.get_crc32_options()
