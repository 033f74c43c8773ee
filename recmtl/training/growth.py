"""Reading a checkpoint into a model that has grown since: more rows in tables, more features, more tasks.

PyTorch's planner refuses tensors of another size. Here each one is read as far as it is there: the rows of a table by
every rank into its own shards, whatever ranks wrote them; a parameter of the dense network by its axes that are indexed
by columns of x or by tasks. What a checkpoint does not have stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem

from recmtl.errors import UserError
from recmtl.models.embeddings import TABLE_PATH, table_of
from recmtl.runtime.private_api import create_chunk_list, create_read_items, create_read_items_for_chunk_list
from recmtl.training.storage import SafePlanner, check_filled, numbers_of, weight_keys


class GrowthPlanner(SafePlanner):
    """Reads what a smaller model's checkpoint has, into the places where it belongs now.

    An axis of a dense parameter that had one entry a column of x, or a task, is known by its size and by that it
    changed: of no other do both hold.

    Args:
        columns: for every column of x that there was, which one it is now.
        width: number of columns now.
        tasks: numbers of tasks then and now; those that are new come last.
        crossed: as `columns`, of x with its crosses beside it, where there are such.
        crossed_width: number of those columns now.
        new: the features and tasks that are new, in words, for messages; empty: none.
    """

    def __init__(
        self,
        columns: Sequence[int],
        width: int,
        tasks: tuple[int, int],
        crossed: Sequence[int] = (),
        crossed_width: int = 0,
        new: str = "",
    ) -> None:
        super().__init__()
        self._new = new
        self._axes = {
            (len(crossed), crossed_width): torch.tensor(crossed, dtype=torch.int64),
            (len(columns), width): torch.tensor(columns, dtype=torch.int64),
            tasks: torch.arange(tasks[0]),
        }
        self._names: dict[str, str] = {}
        """What the checkpoint calls each of its tensors, by `_place`."""
        self._weights: dict[str, str] = {}
        """What the model calls the weight of each table."""
        self._smaller: dict[str, Tensor] = {}
        """Dense tensors of the checkpoint's sizes."""
        self.stored_rows: dict[str, int] = {}
        """By table, how many of its first rows are read; a table that is not there has no entry."""

    def create_local_plan(self) -> LoadPlan:
        """What this rank reads.

        Raises:
            UserError: a tensor differs in a way that is no growth.
        """
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata
        self._names = {_place(name): name for name in stored}
        self._weights = weight_keys(self.state_dict)
        items: list[ReadItem] = []
        for name, target in self.state_dict.items():
            if _place(name) not in self._names:
                continue
            there = self._names[_place(name)]
            described = stored[there]
            if not isinstance(described, TensorStorageMetadata):
                items += create_read_items(name, described, target)
                continue
            table = table_of(name)
            if table is not None and name == self._weights[table]:
                self.stored_rows[table] = described.size[0]
            if described.size != target.size() and table is not None:
                read = self._rows(name, table, described, target)
            else:
                if described.size != target.size():
                    self._places(name, described.size, target.size())
                    target = self._smaller[name] = torch.empty(described.size, dtype=target.dtype)
                read = create_read_items(name, described, target)
                check_filled(name, read, numbers_of(target))
            items += [replace(item, storage_index=replace(item.storage_index, fqn=there)) for item in read]
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Where to put what is read."""
        smaller = self._smaller.get(index.fqn)
        found: Tensor = super().lookup_tensor(index) if smaller is None else smaller
        return found

    @torch.no_grad()
    def finish(self) -> None:
        """Put dense tensors that have grown into their places, once everything is read."""
        for name, smaller in self._smaller.items():
            target = self.state_dict[name]
            places = torch.meshgrid(*self._places(name, smaller.shape, target.shape), indexing="ij")
            target[tuple(place.to(target.device) for place in places)] = smaller.to(target.device)

    def _places(self, name: str, before: Sequence[int], now: Sequence[int]) -> list[Tensor]:
        """For every axis, where its entries are now."""
        places = []
        for old, new in zip(before, now, strict=False):
            place = torch.arange(old) if old == new else self._axes.get((old, new))
            if place is not None:
                places.append(place)
        if not len(places) == len(before) == len(now):
            raise self._no_growth(name, before, now)
        return places

    def _rows(self, name: str, table: str, described: TensorStorageMetadata, target: Any) -> list[ReadItem]:
        """What to read of a table, or of its optimiser's state, into this rank's shards.

        State of row-wise optimisers has the rows of the table's first piece of columns, then those of the second, …:
        with more rows each piece begins elsewhere.
        """
        assert self.metadata is not None
        key = self._weights[table]
        stored = self.metadata.state_dict_metadata[self._names[_place(key)]]
        assert isinstance(stored, TensorStorageMetadata)
        before, now = stored.size[0], self.state_dict[key].size()[0]
        size = target.size()
        if now < before or described.size[0] * now != size[0] * before or described.size[1:] != size[1:]:
            raise self._no_growth(name, described.size, size)
        items: list[ReadItem] = []
        for chunk in create_chunk_list(target):
            piece, row = divmod(chunk.offsets[0], now)
            rows = min(chunk.sizes[0], before - row)
            if rows <= 0:
                continue
            there = ChunkStorageMetadata(
                torch.Size([piece * before + row, *chunk.offsets[1:]]), torch.Size([rows, *chunk.sizes[1:]])
            )
            found = create_read_items_for_chunk_list(name, described, [there])
            check_filled(name, found, there.sizes.numel())
            items += [replace(item, dest_index=MetadataIndex(name, chunk.offsets)) for item in found]
        return items

    def _no_growth(self, name: str, before: Sequence[int], now: Sequence[int]) -> UserError:
        parameter = name.removeprefix("model.").removeprefix("optimizer.state.")
        said = f"{parameter} has the shape {list(before)} there and {list(now)} here, which is no growth"
        new = f": new are {self._new}, and the model cannot take them so; leave them out, or" if self._new else ";"
        return UserError(f"{said}{new} train anew without --start-from")


def _place(name: str) -> str:
    """The name of a parameter or state without how its table is looked up, which changes where it gets a sequence."""
    return TABLE_PATH.sub(r"\1", name)
