"""Which tables every rank holds whole: those whose gradients are fewer bytes than what looking them up exchanges."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torchrec.modules.embedding_configs import EmbeddingBagConfig

from recmtl.config import EmbeddingConfig
from recmtl.distributed.storage import FLOAT, state_bytes
from recmtl.optim.sparse import DENSE_EQUALS_FUSED

MIB = 2**20
ID = LENGTH = 4
"""Bytes of an id, and of the number of ids of a feature in a row."""


def gradient_bytes(table: EmbeddingBagConfig) -> int:
    """Bytes that a rank sends a step for a table that all ranks hold, and as many that it receives, with many ranks.

    Its dense gradient R x D goes around a ring twice: once to be summed, once to be handed out.
    """
    return 2 * FLOAT * table.num_embeddings * table.embedding_dim


def lookup_bytes(table: EmbeddingBagConfig, lengths: Mapping[str, float], batch_size: int) -> float:
    """The same for a table that lies on one of many ranks, on average over the ranks.

    Of a rank's B rows there go out their ids, and the gradients of what was looked up; pooled embeddings come back.

    Args:
        table: its features are F.
        lengths: ids in a row, by feature.
        batch_size: rows of one rank B.
    """
    ids = sum(ID * lengths[feature] + LENGTH for feature in table.feature_names)
    return batch_size * (ids + 2 * FLOAT * table.embedding_dim * len(table.feature_names))


def replicas(
    tables: Iterable[EmbeddingBagConfig],
    of_tasks: Collection[str],
    config: EmbeddingConfig,
    lengths: Mapping[str, float],
    world_size: int,
    batch_size: int,
) -> set[str]:
    """Names of the tables that every rank gets whole, as `embedding.placement` says.

    `auto` takes those whose `gradient_bytes` are at most their `lookup_bytes`: of about as many rows as a rank looks up
    in a step. It takes the smallest first, while weights, dense gradients and optimiser states of all it took fit
    `embedding.replica_mib`; and none where all of them together spare a rank less than `embedding.replica_gain_mib` a
    step, for they need an all-reduce of their own and one more copy of what is looked up. It takes none on one rank,
    which exchanges nothing, and none where a dense optimiser does something else than the fused one.

    Args:
        tables: all of them.
        of_tasks: names of the tables of tasks' own.
        config: the `embedding` section.
        lengths: ids in a row, by feature.
        world_size: number of ranks.
        batch_size: rows of one rank.
    """
    given = set(of_tasks) if config.placement == "data_parallel" else set()
    if config.placement == "sharded" or world_size == 1 or config.optimizer not in DENSE_EQUALS_FUSED:
        return given
    chosen, gain, left = set(), 0.0, config.replica_mib * MIB
    for table in sorted(tables, key=lambda t: t.num_embeddings * t.embedding_dim):
        spared = lookup_bytes(table, lengths, batch_size) - gradient_bytes(table)
        if table.name in given or spared < 0:
            continue
        rows, dim = table.num_embeddings, table.embedding_dim
        left -= 2 * FLOAT * rows * dim + state_bytes(config.optimizer, rows, dim)
        if left < 0:
            break
        chosen.add(table.name)
        gain += spared
    return given | chosen if gain >= config.replica_gain_mib * MIB else given
