"""When memory is short: which tables take how much of a rank, what else does, and which options would fit."""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from recmtl.config import Config
from recmtl.distributed.memory import Memory, predict
from recmtl.distributed.plan import GIB, Cluster, Plan, make_plan
from recmtl.errors import UserError, is_out_of_memory
from recmtl.objectives.train_module import TrainModule
from recmtl.schema import Dataset, Task

IN_TABLES = ("weights", "states")
"""Parts of a rank's memory that are told by table."""
TABLES_NAMED = 5
HALVINGS = 4
"""How often an option may be halved, or the ranks doubled, to fit."""
MARGIN = 0.8
"""Of what was predicted for a run that ran out of memory: what others must need to be said to fit."""
PLANNED_RANKS = 8
"""Beyond, a plan takes seconds, and other ranks wait for this one's last words."""


def size(bytes_: float) -> str:
    """A number of bytes for people."""
    return f"{bytes_ / GIB:.3f} GiB" if bytes_ >= GIB / 10 else f"{bytes_ / 2**20:.2f} MiB"


def on_paper(config: Config, dataset: Dataset, tasks: tuple[Task, ...]) -> TrainModule:
    """What a run trains, without its memory: to plan, and to find out that there would be too little."""
    with torch.device("meta"):
        return TrainModule.from_config(config, dataset, tasks)


@dataclass(frozen=True)
class Forecast:
    """What a run needs of the memory of its ranks, on paper."""

    config: Config
    dataset: Dataset
    plan: Plan
    memory: list[Memory]
    """By rank."""

    @classmethod
    def of(cls, config: Config, dataset: Dataset, cluster: Cluster, process: int | None = None) -> Forecast:
        """Plan a run for devices that need not exist.

        Args:
            config: the run.
            dataset: its data.
            cluster: the devices.
            process: as `predict` takes it.

        Raises:
            UserError: the tables do not fit.
        """
        train_module = on_paper(config, dataset, dataset.select_tasks(tuple(config.training.tasks)))
        batch_size = -(-config.training.batch_size // cluster.world_size)
        plan = make_plan(train_module, config, cluster, batch_size)
        return cls(config, dataset, plan, predict(train_module, plan, config, dataset, batch_size, process))

    @property
    def fullest(self) -> int:
        """The rank that needs most."""
        return max(range(len(self.memory)), key=lambda rank: self.memory[rank].total)

    def check(self) -> None:
        """Refuse what fits no rank.

        Raises:
            UserError: says what the fullest rank needs, and what would fit.
        """
        rank, limit = self.fullest, self.plan.cluster.memory
        if self.memory[rank].total > limit:
            raise UserError(
                f"rank {rank} needs {size(self.memory[rank].total)} of {size(limit)}: {self._told(rank, limit)}"
            )

    def check_surely(self) -> None:
        """As `check`, but by what is known exactly alone: what TorchRec estimates and what a host can share left out.

        Raises:
            UserError: as `check`.
        """
        memory = self.memory[self.fullest]
        if memory.weights + memory.states + memory.dense + memory.activations > self.plan.cluster.memory:
            self.check()

    @contextmanager
    def shortage_told(self, rank: int) -> Iterator[None]:
        """Say what a rank needs when it runs out of memory.

        Raises:
            UserError: in place of the allocator's error.
        """
        try:
            yield
        except Exception as problem:
            if not is_out_of_memory(problem):
                raise
            traceback.clear_frames(problem.__traceback__)  # what they hold is wanted for planning anew
            needs, there = self.memory[rank].total, self.plan.cluster.memory
            told = self._told(rank, min(there, int(MARGIN * needs)))
            plan = f"by its plan it needs {size(needs)}, and {size(there)} should be there"
            raise UserError(f"out of memory on rank {rank}: {plan}; {told}") from None

    def _told(self, rank: int, limit: int) -> str:
        """What takes how much of a rank, largest first, and what would fit `limit`."""
        tables: dict[str, int] = defaultdict(int)
        for shard in self.plan.shards:
            if shard.rank == rank:
                tables[f"table {shard.table}"] += shard.weight_bytes + shard.state_bytes
        others = {name: part for name, part in asdict(self.memory[rank]).items() if name not in IN_TABLES}
        parts = [*_largest_first(tables)[:TABLES_NAMED], *_largest_first(others)]
        named = [(name, part) for name, part in parts if part > self.memory[rank].total / 100]
        rest = self.memory[rank].total - sum(part for _, part in named)
        told = ", ".join(f"{name} {size(part)}" for name, part in [*named, ("the rest", rest)])
        if self.plan.cluster.world_size > PLANNED_RANKS:
            return (
                f"{told}; a smaller training.batch_size or embedding.dim or more ranks may fit, as `recmtl plan` tells"
            )
        options = [f"{name} ({size(needs)})" for name, needs in self._fitting(limit)]
        if self.memory[rank].weights > self.memory[rank].total / 10:
            largest = max(self.plan.shards, key=lambda shard: shard.weight_bytes).table.partition("@")[0]
            options.append(f"fewer rows of {largest} by min_count or hash_rows in the recipe")
        return f"{told}; what would fit: {', '.join(options) or 'a smaller model'}"

    def _fitting(self, limit: int) -> Iterator[tuple[str, int]]:
        """Changes of one thing after which the fullest rank needs no more than `limit`, and how much it needs then."""
        config, cluster = self.config, self.plan.cluster
        batches = [config.training.batch_size >> n for n in range(1, HALVINGS + 1)]
        rows = config.training.micro_batch_size or config.training.batch_size // cluster.world_size
        keys: dict[str, list[Any]] = {
            "training.micro_batch_size": [size for n in range(1, HALVINGS + 1) if (size := rows >> n)],
            "training.batch_size": [batch for batch in batches if batch >= cluster.world_size],
            "embedding.dim": [dim for n in range(1, HALVINGS + 1) if (dim := (config.embedding.dim >> n) // 4 * 4)],
            "embedding.dtype": ["float16"] if config.embedding.dtype == "float32" else [],
            "embedding.placement": ["sharded"] if "data_parallel" in self.plan.table_types().values() else [],
        }
        for key, values in keys.items():
            yield from self._first(limit, ((f"{key} {value}", _with(config, key, value), cluster) for value in values))
        ranks = [cluster.world_size << n for n in range(1, HALVINGS + 1)]
        more = [number for number in ranks if number <= min(config.training.batch_size, 2 * PLANNED_RANKS)]
        yield from self._first(limit, ((f"{n} ranks", config, replace(cluster, world_size=n)) for n in more))

    def _first(self, limit: int, variants: Iterable[tuple[str, Config, Cluster]]) -> Iterator[tuple[str, int]]:
        """The first of some variants of one thing that fits, if any."""
        for name, config, cluster in variants:
            try:
                forecast = Forecast.of(config, self.dataset, cluster, self.memory[0].process)
            except UserError:  # not even the tables fit, or the model needs the whole batch at once
                continue
            if (needs := forecast.memory[forecast.fullest].total) <= limit:
                yield name, needs
                return


def _largest_first(parts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(parts.items(), key=lambda part: -part[1])


def _with(config: Config, key: str, value: Any) -> Config:
    """The configuration with one key changed."""
    section, _, name = key.partition(".")
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})
