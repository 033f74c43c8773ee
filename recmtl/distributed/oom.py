"""When memory runs out, or would: one line that says what a rank needs, table by table and part by part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from recmtl.config import Config
from recmtl.distributed.context import DistContext
from recmtl.distributed.memory import Memory, predict, staging_bytes
from recmtl.distributed.plan import GIB, Cluster, Plan, make_plan
from recmtl.errors import UserError, is_out_of_memory
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset, Task

IN_TABLES = ("weights", "states")
"""Parts of a rank's memory that are told by table."""
TABLES_NAMED = 5
ADVICE = (
    "use more ranks, a smaller embedding.dim or training.batch_size, training.micro_batch_size, checkpoint.background "
    "False, or min_count or hash_rows in the recipe; `recmtl plan` tells what fits"
)


def show_gib(bytes_: float) -> str:
    """A number of bytes for people."""
    return f"{bytes_ / GIB:.3f} GiB" if bytes_ >= GIB / 10 else f"{bytes_ / 2**20:.2f} MiB"


def on_meta_device(config: Config, dataset: Dataset, tasks: tuple[Task, ...]) -> TrainModule:
    """What a run trains, without its memory: to plan, and to find out that there would be too little."""
    with torch.device("meta"):
        return TrainModule.from_config(config, dataset, tasks)


@dataclass(frozen=True)
class MemoryEstimate:
    """What a run needs of the memory of its ranks, on paper."""

    plan: Plan
    memory: list[Memory]
    """By rank."""
    staging: list[int]
    """By rank, bytes of host memory for the copy that a checkpoint is written from; on CPUs `memory` has it too."""

    @classmethod
    def from_config(cls, config: Config, dataset: Dataset, cluster: Cluster) -> MemoryEstimate:
        """Plan a run for devices that need not exist.

        Args:
            config: the run.
            dataset: its data.
            cluster: the devices.

        Raises:
            UserError: the tables do not fit.
        """
        batch_size = -(-config.training.batch_size // cluster.world_size)
        return cls._make(config, dataset, dataset.select_tasks(tuple(config.training.tasks)), cluster, batch_size)

    @classmethod
    def for_ranks(
        cls, config: Config, dataset: Dataset, tasks: tuple[Task, ...], context: DistContext, batch_size: int
    ) -> MemoryEstimate:
        """Plan a run for the ranks that are there.

        Args:
            config: the run.
            dataset: its data.
            tasks: those of the model.
            context: this process.
            batch_size: rows of one rank.

        Raises:
            UserError: the tables do not fit.
        """
        memory = int(config.sharding.device_memory_gib * GIB) or int(context.min(context.device_memory()))
        cluster = Cluster(context.world_size, context.local_world_size, context.device.type, memory)
        # Made once: it is the same for all, and seconds of work for hundreds of ranks.
        return context.run_on_rank0(lambda: cls._make(config, dataset, tasks, cluster, batch_size))

    @classmethod
    def _make(
        cls, config: Config, dataset: Dataset, tasks: tuple[Task, ...], cluster: Cluster, batch_size: int
    ) -> MemoryEstimate:
        train_module = on_meta_device(config, dataset, tasks)
        plan = make_plan(train_module, config, cluster, batch_size)
        memory = predict(train_module, plan, config, dataset, batch_size)
        return cls(plan, memory, staging_bytes(train_module, plan, config))

    @property
    def fullest(self) -> int:
        """The rank that needs most."""
        return max(range(len(self.memory)), key=lambda rank: self.memory[rank].total)

    def check(self) -> None:
        """Refuse what fits no rank.

        Raises:
            UserError: says what the fullest rank needs, by part.
        """
        rank, limit = self.fullest, self.plan.cluster.memory
        if self.memory[rank].total > limit:
            needs = show_gib(self.memory[rank].total)
            raise UserError(f"rank {rank} needs {needs} of {show_gib(limit)}: {self._parts(rank)}; {ADVICE}")

    def check_surely(self) -> None:
        """As `check`, but by what is known exactly alone: what TorchRec estimates and what a host can share left out.

        Raises:
            UserError: as `check`.
        """
        memory = self.memory[self.fullest]
        sure = memory.weights + memory.states + memory.dense + memory.activations + memory.staging
        if sure > self.plan.cluster.memory:
            self.check()

    @contextmanager
    def explain_oom(self, rank: int) -> Iterator[None]:
        """Say what a rank needs when it runs out of memory.

        Raises:
            UserError: in place of the allocator's error.
        """
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            needs, there = show_gib(self.memory[rank].total), show_gib(self.plan.cluster.memory)
            plan = f"by its plan it needs {needs}, and {there} should be there"
            raise UserError(f"out of memory on rank {rank}: {plan}; {self._parts(rank)}; {ADVICE}") from None

    def _parts(self, rank: int) -> str:
        """What takes how much of a rank, largest first."""
        tables: dict[str, int] = defaultdict(int)
        for shard in self.plan.shards:
            if shard.rank == rank:
                tables[f"table {shard.table}"] += shard.weight_bytes + shard.state_bytes
        others = {name: part for name, part in asdict(self.memory[rank]).items() if name not in IN_TABLES}
        parts = [*_largest_first(tables)[:TABLES_NAMED], *_largest_first(others)]
        named = [(name, part) for name, part in parts if part > self.memory[rank].total / 100]
        rest = self.memory[rank].total - sum(part for _, part in named)
        return ", ".join(f"{name} {show_gib(part)}" for name, part in [*named, ("the rest", rest)])


def _largest_first(parts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(parts.items(), key=lambda part: -part[1])
