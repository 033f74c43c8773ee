"""The process group, and what this process is in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import psutil
import torch
import torch.distributed as dist

from recmtl.distributed.allocator import keep_freed_memory
from recmtl.errors import UserError
from recmtl.runtime.exit import ended_by_sigterm
from recmtl.runtime.storage import os_errors

TIMEOUT = timedelta(minutes=5)
"""How long a rank waits for the others in a step before it gives up."""
CPU_GROUP_TIMEOUT = timedelta(hours=1)
"""How long a rank waits while others may be at the disk: files are uneven, file systems slow. A rank that ends is
noticed at once all the same: its connections close."""

T = TypeVar("T")

CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container reads how much memory it may use: cgroups v2 and v1."""


@dataclass(frozen=True)
class DistContext:
    """The place of this process among those of the run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    cpu_group: dist.ProcessGroup
    """All ranks once more, over gloo and with `CPU_GROUP_TIMEOUT`: for files and for what is no tensor."""

    @property
    def is_first(self) -> bool:
        """Rank 0 writes files and talks to the user."""
        return self.rank == 0

    def in_new_group(self) -> DistContext:
        """The same ranks over a `cpu_group` of their own, for a thread of every rank; all ranks call this together."""
        return replace(self, cpu_group=_new_cpu_group())

    def device_memory(self) -> int:
        """Bytes of memory this rank may fill: the GPU's, or its share of the host's."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        return host_memory() // self.local_world_size

    def print_rank0(self, text: str) -> None:
        """A line for the user, from the first rank."""
        if self.is_first:
            print(text, file=sys.stderr, flush=True)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all ranks, in place."""
        dist.all_reduce(values)
        return values

    def max(self, value: float) -> float:
        """Largest of the ranks' values."""
        tensor = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.item()

    def min(self, value: float) -> float:
        """Smallest of the ranks' values."""
        return -self.max(-value)

    def barrier(self) -> None:
        """Wait for all ranks, which may be at the disk."""
        dist.all_reduce(torch.zeros(1), group=self.cpu_group)

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What `make` gives on every rank, by rank.

        Raises:
            UserError: on all ranks what the first one raised that raised one or an OSError: all say the same.
        """
        found: list[Any] = [_attempt(make)]
        if self.world_size > 1:
            made, found = found[0], [None] * self.world_size
            dist.all_gather_object(found, made, group=self.cpu_group)
        for _, message in found:
            if message is not None:
                raise UserError(message)
        return [value for value, _ in found]

    def sum_on_host(self, values: np.ndarray) -> np.ndarray:
        """Sum of an array in host memory over all ranks; integers stay exact."""
        if self.world_size == 1:
            return values
        total = torch.from_numpy(values.copy())
        dist.all_reduce(total, group=self.cpu_group)
        return total.numpy()

    def exchange(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Send part r to rank r (all-to-all over the hosts).

        Args:
            parts: one array [n_r] for every rank, all of one type.

        Returns:
            What the ranks sent to this one, one after the other.
        """
        if self.world_size == 1:
            return parts[0]
        sizes = torch.tensor([part.nbytes for part in parts])
        incoming = torch.empty_like(sizes)
        dist.all_to_all_single(incoming, sizes, group=self.cpu_group)
        sent = torch.from_numpy(np.concatenate(parts).view(np.uint8))
        received = torch.empty(int(incoming.sum()), dtype=torch.uint8)
        dist.all_to_all_single(received, sent, incoming.tolist(), sizes.tolist(), group=self.cpu_group)
        return received.numpy().view(parts[0].dtype)

    def run_on_rank0(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first rank, on all of them.

        Raises:
            UserError: what it raises there, or an OSError, on all of them.
        """
        found = [_attempt(make) if self.is_first else None]
        if self.world_size > 1:
            dist.broadcast_object_list(found, src=0, group=self.cpu_group)
        value, message = cast(tuple[T, str | None], found[0])
        if message is not None:
            raise UserError(message)
        return value


def _attempt(make: Callable[[], T]) -> tuple[T | None, str | None]:
    """What `make` gives, or the message of the UserError or OSError that it raises."""
    try:
        with os_errors(Path.cwd()):
            return make(), None
    except UserError as error:
        return None, str(error)


def host_memory() -> int:
    """Bytes of memory of this machine, or of the container when that has less."""
    memory = psutil.virtual_memory().total
    for limit in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # not this version of cgroups, or no limit ("max")
            memory = min(memory, int(limit.read_text()))
    return memory


def resolve_device(wanted: str) -> str:
    """Type of device to run on: `auto` is CUDA where there is a GPU.

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("training.device is cuda, but PyTorch sees no GPU here; use cpu or auto")
    return ("cuda" if available else "cpu") if wanted == "auto" else wanted


@contextmanager
def process_group(device: str) -> Iterator[DistContext]:
    """Join the process group that the launcher describes in the environment, or make one of a single process.

    Args:
        device: auto, cpu or cuda; gloo connects CPUs, nccl connects GPUs.

    Raises:
        UserError: there is no GPU, or fewer of them than ranks on this machine, or another process has the port.
    """
    kind = resolve_device(device)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if kind == "cuda":
        if local_rank >= (gpus := torch.cuda.device_count()):
            raise UserError(f"{local_world_size} ranks on a machine with {gpus} GPUs; start one rank a GPU at most")
        torch.cuda.set_device(local_rank)
    else:
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world_size))
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device("cpu")
    backend = "nccl" if kind == "cuda" else "gloo"
    if world_size == local_world_size:
        # Else gloo looks up the machine's own name, which in a container or on a laptop may lead nowhere.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with ended_by_sigterm(), _taken_port_told():  # ranks wait here for those that are still starting, or are gone
        if world_size == 1 and "MASTER_ADDR" not in os.environ:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
        else:
            dist.init_process_group(backend, timeout=TIMEOUT)
        cpu_group = _new_cpu_group()
        # One that ends at once, over a mistake, must not leave others in the middle of connecting to it.
        dist.barrier(cpu_group)
    context = DistContext(rank, world_size, local_rank, local_world_size, place, cpu_group)
    try:
        yield context
    except BaseException:
        if world_size == 1:  # after an error others may never come, and the process ends anyway
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _new_cpu_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=CPU_GROUP_TIMEOUT)
    assert group is not None
    return group


@contextmanager
def _taken_port_told() -> Iterator[None]:
    try:
        yield
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ["MASTER_PORT"]
        raise UserError(f"another process has port {port}, where the ranks were to meet; start again") from None


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error says that another rank is gone or does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))
