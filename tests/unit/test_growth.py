"""Reading a checkpoint into tensors that have grown, under plans that need GPUs too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import Shard
from torch.distributed._shard.sharding_spec import ShardMetadata
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from recmtl.distributed.context import process_group
from recmtl.runtime.private_api import ShardedTensor
from recmtl.training import storage
from recmtl.training.growth import GrowthPlanner
from recmtl.training.storage import SafeReader, Writer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
WEIGHT = "model.embeddings.collection.embedding_bags.item.weight"
STATE = f"embedding.{WEIGHT}"
BEFORE, NOW, DIM = 10, 17, 4
TABLE_WISE, ROW_WISE, COLUMN_WISE, GRID = "table_wise", "row_wise", "column_wise", "grid"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of one."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu"):
        yield
    assert not dist.is_initialized()


def cuts(kind: str, rows: int) -> list[tuple[int, int, int, int]]:
    """The pieces (first row, first column, rows, columns) of a table, piece of columns by piece of columns."""
    middle = -(-rows // 2)
    spans = [(0, middle), (middle, rows - middle)] if kind in (ROW_WISE, GRID) else [(0, rows)]
    width = DIM // 2 if kind in (COLUMN_WISE, GRID) else DIM
    return [(first, column, count, width) for column in range(0, DIM, width) for first, count in spans]


def sharded(whole: torch.Tensor, pieces: list[tuple[list[int], list[int]]]) -> ShardedTensor:
    """Copies of pieces (offsets, sizes) of a tensor as shards, all on this rank."""
    shards = []
    for offsets, sizes in pieces:
        part = whole[tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))]
        shards.append(Shard(part.clone(), ShardMetadata(offsets, sizes, "rank:0/cpu")))
    return ShardedTensor._init_from_local_shards(shards, *whole.shape)


def state_of(kind: str, weight: torch.Tensor, row_wise: torch.Tensor) -> dict[str, dict[str, object]]:
    """As a session has it. Row-wise state [n R] has the rows of one piece of columns after those of the other."""
    rows, found = len(weight), cuts(kind, len(weight))
    of_rows = [([column // width * rows + first], [count]) for first, column, count, width in found]
    state = sharded(row_wise, of_rows)
    table = sharded(weight, [([first, column], [count, width]) for first, column, count, width in found])
    return {
        "model": {WEIGHT: table},
        "optimizer": {
            "state": {
                STATE: {
                    "item.momentum1": state,
                    "item.momentum2": sharded(
                        weight, [([first, column], [count, width]) for first, column, count, width in found]
                    ),
                }
            }
        },
    }


def whole(tensor: ShardedTensor) -> torch.Tensor:
    found = torch.empty(tensor.size())
    for shard in tensor.local_shards():
        spans = zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)
        found[tuple(slice(offset, offset + size) for offset, size in spans)] = shard.tensor
    return found


@pytest.mark.parametrize("block", [storage.BLOCK_BYTES, 40])
@pytest.mark.parametrize(
    ("before", "now"),
    [
        (TABLE_WISE, ROW_WISE),
        (ROW_WISE, TABLE_WISE),
        (ROW_WISE, ROW_WISE),
        (COLUMN_WISE, COLUMN_WISE),
        (COLUMN_WISE, GRID),
        (GRID, COLUMN_WISE),
    ],
)
def test_rows_are_read_whatever_the_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, now: str, block: int
) -> None:
    """At once, or two rows at a time, as pieces are read that are larger than a block."""
    monkeypatch.setattr(storage, "BLOCK_BYTES", block)
    pieces = 2 if before in (COLUMN_WISE, GRID) else 1
    weight = torch.rand(BEFORE, DIM)
    of_rows = torch.rand(pieces, BEFORE)
    dcp.save(state_of(before, weight, of_rows.flatten()), storage_writer=Writer(tmp_path / "c"))
    grown = state_of(now, torch.full((NOW, DIM), -1.0), torch.full((pieces * NOW,), -1.0))
    dcp.load(grown, storage_reader=SafeReader(tmp_path / "c"), planner=GrowthPlanner([0], 1, (1, 1)))
    states = grown["optimizer"]["state"][STATE]
    for found in (grown["model"][WEIGHT], states["item.momentum2"]):
        assert torch.equal(whole(found)[:BEFORE], weight)
        assert (whole(found)[BEFORE:] == -1).all()
    found = whole(states["item.momentum1"]).unflatten(0, (pieces, NOW))
    assert torch.equal(found[:, :BEFORE], of_rows)
    assert (found[:, BEFORE:] == -1).all()


def test_dense_parameters_grow_by_columns_and_tasks(tmp_path: Path) -> None:
    saved = {"both": torch.rand(2, 3, 5), "same": torch.rand(3, 2), "gone": torch.rand(2)}
    dcp.save({"model": saved}, storage_writer=Writer(tmp_path / "c"))
    now = {"both": torch.zeros(4, 6, 5), "same": torch.zeros(3, 2), "new": torch.ones(7)}
    planner = GrowthPlanner([0, 4, 5], 6, (2, 4))
    dcp.load({"model": now}, storage_reader=SafeReader(tmp_path / "c"), planner=planner)
    planner.finish()
    assert torch.equal(now["both"][:2, [0, 4, 5]], saved["both"])
    assert now["both"].count_nonzero() == saved["both"].numel()
    assert torch.equal(now["same"], saved["same"])
    assert (now["new"] == 1).all()


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3), (1, 3, 5), (2, 3, 6)])
def test_other_shapes_are_no_growth(tmp_path: Path, shape: tuple[int, ...]) -> None:
    dcp.save({"model": {"layer": torch.rand(2, 3, 5)}}, storage_writer=Writer(tmp_path / "c"))
    state = {"model": {"layer": torch.zeros(shape)}}
    with pytest.raises(
        CheckpointException, match=r"layer has the shape \[2, 3, 5\] there and \[.*\] here, which is no"
    ):
        dcp.load(state, storage_reader=SafeReader(tmp_path / "c"), planner=GrowthPlanner([0, 1, 2], 6, (2, 3)))


def test_tables_do_not_shrink(tmp_path: Path) -> None:
    dcp.save(state_of(TABLE_WISE, torch.rand(NOW, DIM), torch.rand(NOW)), storage_writer=Writer(tmp_path / "c"))
    state = state_of(TABLE_WISE, torch.zeros(BEFORE, DIM), torch.zeros(BEFORE))
    with pytest.raises(CheckpointException, match=r"item.weight has the shape \[17, 4\] there and \[10, 4\] here"):
        dcp.load(state, storage_reader=SafeReader(tmp_path / "c"), planner=GrowthPlanner([0], 1, (1, 1)))


def test_a_piece_of_a_table_is_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands before it in the file, and whatever its type."""
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64)
    saved = {str(kind): torch.randint(0, 9, (301, 7)).to(kind) for kind in kinds} | {"turned": torch.rand(7, 301).T}
    dcp.save({"model": saved}, storage_writer=Writer(tmp_path / "c"))
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1000)
    read = []
    plain = storage.SafeReader._read_blocks

    def counted(reader: SafeReader, item: ReadItem, planner: LoadPlanner) -> bool:
        read.append((item.dest_index.fqn, plain(reader, item, planner)))
        return read[-1][1]

    monkeypatch.setattr(storage.SafeReader, "_read_blocks", counted)
    found = {name: torch.zeros(301, 7, dtype=value.dtype) for name, value in saved.items()}
    dcp.load({"model": found}, storage_reader=SafeReader(tmp_path / "c"), planner=storage.SafePlanner())
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert {name.removeprefix("model.") for name, by_block in read if by_block} >= {str(kind) for kind in kinds}
