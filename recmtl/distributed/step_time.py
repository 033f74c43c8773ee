"""What a piece of an embedding table costs a step, by TorchRec's planner, which asks for every rank of every choice."""

from __future__ import annotations

from typing import Any

from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.types import ShardingOption


class StepTimeEstimator(EmbeddingPerfEstimator):
    """TorchRec's estimate, made once for all pieces of one size of a table: they cost the same.

    A table cut over 512 ranks has 512 pieces of two sizes, and an estimate takes a tenth of a millisecond.
    """

    def estimate(self, sharding_options: list[ShardingOption], *args: Any, **kwargs: Any) -> None:
        """Fill in the times of every shard of every option."""
        every = [option.shards for option in sharding_options]
        for option in sharding_options:
            option.shards = list({tuple(shard.size): shard for shard in option.shards}.values())
        super().estimate(sharding_options, *args, **kwargs)
        for option, shards in zip(sharding_options, every, strict=True):
            times = {tuple(shard.size): shard.perf for shard in option.shards}
            option.shards = shards
            for shard in shards:
                shard.perf = times[tuple(shard.size)]
