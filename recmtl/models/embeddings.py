"""All embedding tables of a model in one EmbeddingBagCollection, so that FBGEMM looks them up in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_configs import DataType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recmtl.errors import UserError
from recmtl.features import is_list
from recmtl.models.base import SHARED
from recmtl.schema import Dataset, Table

DATA_TYPES = {"float32": DataType.FP32, "float16": DataType.FP16}
"""TorchRec's names of what `embedding.dtype` offers. FBGEMM rounds bfloat16 to the nearest on GPUs, which loses most
updates, and has none on CPUs."""


def table_name(table: str, table_set: str, table_sets: Sequence[str]) -> str:
    """Name of a table's copy in one table set: the plain name where there is one set only.

    TorchRec keeps tables in a ModuleDict, where names of its own attributes (type, values, ...) are taken.
    """
    return table if len(table_sets) == 1 and not hasattr(nn.ModuleDict(), table) else f"{table}@{table_set}"


class Regroup(nn.Module):
    """Columns of a KeyedTensor by table set: {table set: the columns of its keys side by side, in order}.

    In place of torchrec's KTRegroupAsDict, whose kernel walks over single rows on the CPU (nine tenths of a step).

    Args:
        keys: the keys of every table set.
    """

    def __init__(self, keys: dict[str, list[str]]) -> None:
        super().__init__()
        self.keys = keys

    def forward(self, pooled: KeyedTensor) -> dict[str, Tensor]:
        """Values [B, ΣD] of every table set; [B, 0] where there are no keys."""
        if not pooled.keys():
            return dict.fromkeys(self.keys, pooled.values())
        widths = pooled.length_per_key()
        spans = {
            key: (end - width, end) for key, width, end in zip(pooled.keys(), widths, accumulate(widths), strict=True)
        }
        # Neighbours stay together: a table set whose keys are in order already is not copied.
        members = {table_set: _joined([spans[key] for key in keys]) for table_set, keys in self.keys.items()}
        runs = sorted(span for joined in members.values() for span in joined)
        lengths = [stop - start for start, stop in runs]
        # Splitting into one piece would copy its gradient.
        pieces = pooled.values().split(lengths, dim=1) if len(runs) > 1 else [pooled.values()]
        values = dict(zip(runs, pieces, strict=True))
        return {
            table_set: values[joined[0]] if len(joined) == 1 else torch.cat([values[span] for span in joined], dim=1)
            for table_set, joined in members.items()
        }


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans (start, end) with those that follow each other made one."""
    joined = spans[:1]
    for start, end in spans[1:]:
        if joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined


class Embeddings(nn.Module):
    """Pooled embeddings of all sparse features, once for every table set.

    Args:
        dataset: tables and features.
        dim: embedding dimension of the tables that the recipe gives none.
        table_sets: names of the copies of every table (most models want one, STEM one a task and a shared one).
        dtype: of the tables, float32 or float16; pooled embeddings are float32 either way.
        device: of the tables. On ``meta`` they get memory where the sharding plan puts them; elsewhere they start
            uniform in ±1/√rows and can be looked up at once.

    Raises:
        UserError: two features of one table pool differently, or two table sets have one name.
    """

    def __init__(
        self,
        dataset: Dataset,
        dim: int,
        table_sets: Sequence[str] = (SHARED,),
        dtype: str = "float32",
        device: str = "meta",
    ) -> None:
        super().__init__()
        if len(set(table_sets)) < len(table_sets):
            raise UserError(
                f"a task is called '{SHARED}', as this model calls the tables of all tasks; rename the task"
            )

        def bags(table_set: str) -> list[EmbeddingBagConfig]:
            return [
                EmbeddingBagConfig(
                    name=table_name(table.name, table_set, table_sets),
                    num_embeddings=table.rows,
                    embedding_dim=table.dim or dim,
                    data_type=DATA_TYPES[dtype],
                    feature_names=[f.name for f in dataset.sparse_features if f.table == table.name],
                    pooling=_pooling(dataset, table),
                )
                for table in dataset.tables
            ]

        by_set = {table_set: bags(table_set) for table_set in table_sets}
        self.tables = [bag for bags_of_set in by_set.values() for bag in bags_of_set]
        """All tables; none where all features are numeric, and then there is no collection: nothing to shard."""
        self.collection = EmbeddingBagCollection(self.tables, device=torch.device(device)) if self.tables else None
        self.task_tables = [bag for table_set in table_sets if table_set != SHARED for bag in by_set[table_set]]
        """The tables of tasks' own."""

        # Features lie in x table by table, as FBGEMM returns them where nothing is cut, then the numeric ones.
        sparse = [f for table in dataset.tables for f in dataset.sparse_features if f.table == table.name]
        widths = {f.name: dataset.table(str(f.table)).dim or dim for f in sparse}
        widths |= {f.name: f.width for f in dataset.dense_features}
        ends = list(accumulate(widths.values()))
        self.columns = {name: slice(end - widths[name], end) for name, end in zip(widths, ends, strict=True)}
        self.width = ends[-1]
        """Width of x: of one table set's output and the numeric features that follow it."""
        self.lengths = {f.name: f.mean_length for f in sparse}
        """Ids in a row of every sparse feature, on average; 1 where it is not known."""

        # TorchRec names a feature's output after its table too when it has several. The order of the columns it
        # returns depends on the sharding plan: they are always picked by key.
        self.regroup = Regroup(
            {
                table_set: [
                    f.name if len(table_sets) == 1 else f"{f.name}@{table_name(str(f.table), table_set, table_sets)}"
                    for f in sparse
                ]
                for table_set in table_sets
            }
        )

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Pooled embeddings [B, ΣD] of every table set; see `columns` for where features lie."""
        if self.collection is None:
            # With a gradient, as weightings ask for one; it has no values.
            nothing = torch.empty(sparse.stride(), 0, device=sparse.device(), requires_grad=True)
            return self.regroup(KeyedTensor([], [], nothing))
        return self.regroup(self.collection(sparse))


def _pooling(dataset: Dataset, table: Table) -> PoolingType:
    """How a table's list features pool, each by its own choice; for one id a row sum and mean are the same."""
    poolings = {f.pooling for f in dataset.sparse_features if f.table == table.name and is_list(f)} or {"sum"}
    if len(poolings) > 1:
        raise UserError(f"table '{table.name}': its list features must all pool with sum or all with mean")
    return PoolingType.MEAN if poolings == {"mean"} else PoolingType.SUM
