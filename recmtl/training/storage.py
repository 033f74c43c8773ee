"""torch.distributed.checkpoint's files: written with errors that say why, read without running what is in them.

PyTorch loads tensors with weights-only semantics, but a checkpoint's index (``.metadata``) and its values that are no
tensors with plain pickle, which runs any code that a file names. Here both load tensors and plain values only.
"""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import EnumMeta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, DefaultLoadPlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from recmtl.errors import is_out_of_memory
from recmtl.models.embeddings import table_of
from recmtl.runtime.private_api import INDEX_CLASSES, ShardedTensor, values_offset
from recmtl.runtime.storage import exists, make_folder, open_read, open_write, remove, rename, sync
from recmtl.training.manifest import Checksum, Entries

NETWORK_KEY = "model.model.{}."
"""What a checkpoint calls the parameters of a network of the model."""
OPTIMIZER_KEYS = "optimizer."
"""What it calls all that is an optimiser's."""


def weight_keys(names: Iterable[str]) -> dict[str, str]:
    """By table, what a checkpoint calls its weight.

    Args:
        names: of all that is in a checkpoint.
    """
    return {table: name for name in names if not name.startswith(OPTIMIZER_KEYS) and (table := table_of(name))}


BLOCK_BYTES = 2**24
"""What is read of a large tensor at a time."""


class _Summed:
    """A file that is written from its beginning to its end, with the checksum of what it gets."""

    def __init__(self, file: Any) -> None:
        self._file, self.checksum = file, Checksum()

    def write(self, content: bytes | memoryview) -> int:
        self.checksum.add(content)
        written: int = self._file.write(content)
        return written

    def close(self) -> None:
        if not self._file.closed:
            sync(self._file)
            self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Files(FileSystem):
    """PyTorch's access to files, wherever they lie; it remembers what a manifest says of those that were written."""

    def __init__(self) -> None:
        self.entries: Entries = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        if mode == "rb":
            with open_read(path) as file:
                yield file
            return
        with open_write(path) as file:
            summed = _Summed(file)
            yield summed
            summed.close()
        self.entries[path.name] = summed.checksum.entry()

    def rename(self, path: Any, new_path: Any) -> None:
        rename(path, new_path)
        self.entries[new_path.name] = self.entries.pop(path.name)

    def mkdir(self, path: Any) -> None:
        make_folder(path)

    def exists(self, path: Any) -> bool:
        return exists(path)

    def rm_file(self, path: Any) -> None:
        remove(path)


class Writer(FileSystemWriter):
    """Writes a checkpoint's files; where the system refuses, its error is what is raised.

    Attributes:
        entries: size and checksum of every file that this rank wrote, made while it was written.
    """

    def __init__(self, folder: Path) -> None:
        # Copied ahead, a thread would take up memory of the first GPU. `_Files` has files on the disk itself.
        super().__init__(folder, per_thread_copy_ahead=0, sync_files=False)
        self.fs = _Files()
        self.entries = self.fs.entries

    @property
    def checkpoint_id(self) -> str:
        """The folder, as the index names it."""
        return str(self.path)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's part.

        Raises:
            OSError: the disk is full, say. By itself PyTorch complains of an unexpected position then.
        """
        # PyTorch would hold Python's lock, and training, while it computes a checksum of its own.
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            behind: BaseException | None = error
            while behind and not isinstance(behind, OSError):
                behind = behind.__context__
            raise behind or error from None
        finally:
            torch.serialization.set_crc32_options(before)


def reason(error: CheckpointException) -> str:
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


def enum_member(enum: Any, name: str) -> Any:
    """What `getattr` is for in an index: early releases of Python 3.11 pickle members of enumerations as a call of it.

    Raises:
        UnpicklingError: it is asked for something else.
    """
    if not isinstance(enum, EnumMeta):
        raise pickle.UnpicklingError(f"{name} of {enum} has no place in a checkpoint")
    return enum[name]


class IndexUnpickler(pickle.Unpickler):
    """Builds an index and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name, if an index may hold it.

        Raises:
            UnpicklingError: it may not.
        """
        if (module, name) == ("builtins", "getattr"):
            return enum_member
        known = name in INDEX_CLASSES.get(module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


class SafeReader(FileSystemReader):
    """Reads the index of a checkpoint with `IndexUnpickler`, and large tensors a block of rows at a time.

    By itself PyTorch reads the whole piece of a table that some rank wrote, beside the rows of it that a rank takes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fs, self.folder = _Files(), folder

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        """The index. (PyTorch looks for an index of every rank's own where one of these has the name `kwargs`.)"""
        with open_read(self.folder / ".metadata") as file:
            metadata = IndexUnpickler(file).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill this rank's tensors."""
        rest = [item for item in plan.items if not self._read_blocks(item, planner)]
        return super().read_data(LoadPlan(rest), planner)

    def _read_blocks(self, item: ReadItem, planner: LoadPlanner) -> bool:
        """Fill a part of a tensor from a piece that is large and lies row after row; whether it is such a piece."""
        place = self.storage_data[item.storage_index]
        if item.type != LoadItemType.TENSOR or place.length <= BLOCK_BYTES:
            return False
        with open_read(self.folder / place.relative_path) as file:
            view = self._slice_file(file, place)
            with torch.serialization.skip_data():
                piece = torch.load(view, map_location="cpu", weights_only=True)
            if not piece.is_contiguous():
                return False
            first, row = item.storage_offsets[0], piece.stride(0) * piece.element_size()
            start = place.offset + values_offset(view) + piece.storage_offset() * piece.element_size() + first * row
            target = planner.resolve_tensor(item).detach()
            for block in target.split(max(1, BLOCK_BYTES // row)):
                file.seek(start)
                content = bytearray(file.read(len(block) * row))
                values = torch.frombuffer(content, dtype=piece.dtype).view(len(block), *piece.shape[1:])
                for dim, offset in enumerate(item.storage_offsets[1:], 1):
                    values = values.narrow(dim, offset, item.lengths[dim])
                block.copy_(values)
                start += len(block) * row
        planner.commit_tensor(item, target)
        return True


def check_filled(name: str, items: Iterable[ReadItem], wanted: int) -> None:
    """Refuse to fill a tensor in part: memory that nothing was written to would be taken for values.

    Args:
        name: of the tensor.
        items: all that is read into it on this rank.
        wanted: how many numbers it must be.

    Raises:
        ValueError: it is another number.
    """
    found = sum(item.lengths.numel() for item in items)
    if found != wanted:
        raise ValueError(f"{found} of {wanted} numbers of {name} are there")


def numbers_of(value: Any) -> int:
    """How many numbers this rank holds of a tensor; 0 of what is none."""
    if isinstance(value, ShardedTensor):
        return sum(shard.tensor.numel() for shard in value.local_shards())
    return value.numel() if isinstance(value, Tensor) else 0


class SafePlanner(DefaultLoadPlanner):
    """Loads values that are no tensors only where weights-only semantics allow them."""

    def create_local_plan(self) -> LoadPlan:
        """What this rank reads.

        By itself PyTorch may take a checkpoint with parts of other ranks in it for one of its versions before 2.4,
        which wrote a value for every optimiser state, also for SGD's, which is empty.
        """
        assert self.metadata is not None
        plan = create_default_local_load_plan(self.state_dict, self.metadata)
        items: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            if item.type == LoadItemType.TENSOR:
                items[item.dest_index.fqn].append(item)
        for name, target in self.state_dict.items():
            check_filled(name, items[name], numbers_of(target))
        return plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take over one value.

        Raises:
            UnpicklingError: it is made of more than plain values.
        """
        torch.load(value, weights_only=True)  # refuses what runs code; what it passes is safe to load plainly
        value.seek(0)
        super().load_bytes(read_item, value)
