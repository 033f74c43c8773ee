"""Times of tables' pieces: TorchRec's, whatever is estimated once for many."""

from __future__ import annotations

import pytest
import torch
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from recmtl.distributed.plan import sharders
from recmtl.distributed.step_time import StepTimeEstimator


@pytest.mark.parametrize(("device", "ranks", "local"), [("cuda", 8, 4), ("cuda", 16, 8), ("cpu", 3, 3)])
def test_every_piece_has_torchrecs_time(device: str, ranks: int, local: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_and_dims = [(1003, 16), (7, 16), (5000, 64), (1003, 32)]  # cut unevenly, into fewer rows than ranks, evenly
    tables = [
        EmbeddingBagConfig(name=f"t{i}", num_embeddings=rows, embedding_dim=dim, feature_names=[f"f{i}"])
        for i, (rows, dim) in enumerate(rows_and_dims)
    ]
    module = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    topology = Topology(world_size=ranks, compute_device=device, local_world_size=local)

    def options(estimator):
        return EmbeddingEnumerator(topology, 256, estimator=[estimator(topology)]).enumerate(module, sharders())

    estimated = []
    estimate = EmbeddingPerfEstimator.estimate
    monkeypatch.setattr(
        EmbeddingPerfEstimator,
        "estimate",
        lambda self, wanted, *args, **kwargs: (
            estimated.append(sum(len(option.shards) for option in wanted)),
            estimate(self, wanted, *args, **kwargs),
        ),
    )
    ours, theirs = options(StepTimeEstimator), options(EmbeddingPerfEstimator)
    assert len(ours) == len(theirs) > len(tables)
    for mine, other in zip(ours, theirs, strict=True):
        assert [(shard.size, shard.offset, shard.perf) for shard in mine.shards] == [
            (shard.size, shard.offset, shard.perf) for shard in other.shards
        ]
    assert estimated[0] < estimated[1]
