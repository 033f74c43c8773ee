"""All embedding tables of a run in one EmbeddingBagCollection, so that FBGEMM looks them up in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recmtl.data.dataset import Dataset
from recmtl.errors import UserError
from recmtl.models.base import SHARED


def table_name(table: str, group: str, groups: Sequence[str]) -> str:
    """Name of a table's copy for one embedding group: the plain name when there is one group only.

    TorchRec keeps tables in a ModuleDict, where names of its own attributes (type, values, ...) are taken.
    """
    return table if len(groups) == 1 and not hasattr(nn.ModuleDict(), table) else f"{table}@{group}"


class Regroup(nn.Module):
    """Columns of a KeyedTensor by key: {group: its keys side by side, in order}.

    In place of torchrec's KTRegroupAsDict, whose kernel walks over single rows on the CPU (nine tenths of a step).
    """

    def __init__(self, groups: dict[str, list[str]]) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, pooled: KeyedTensor) -> dict[str, Tensor]:
        """Values [B, ΣD] of every group."""
        names = list(pooled.keys())
        pieces = dict(zip(names, pooled.values().split(pooled.length_per_key(), dim=1), strict=True))
        return {
            group: pooled.values() if keys == names else torch.cat([pieces[key] for key in keys], dim=1)
            for group, keys in self.groups.items()
        }


class Embeddings(nn.Module):
    """Pooled embeddings of all sparse features, once for every embedding group.

    The tables are built on the meta device: they get memory where the sharding plan puts them.

    Args:
        dataset: tables and features.
        dim: embedding dimension of the tables that the recipe gives none.
        groups: names of the copies of every table (most models want one, STEM one a task and a shared one).

    Raises:
        UserError: two features of one table pool differently.
    """

    def __init__(self, dataset: Dataset, dim: int, groups: Sequence[str] = (SHARED,)) -> None:
        super().__init__()
        configs = []
        for group in groups:
            for table in dataset.tables:
                features = [f for f in dataset.sparse_features if f.table == table.name]
                # A list feature pools with its own choice; for one id a row sum and mean are the same.
                poolings = {f.pooling for f in features if f.kind == "list"} or {"sum"}
                if len(poolings) > 1:
                    raise UserError(f"table '{table.name}': its list features must all pool with sum or all with mean")
                configs.append(
                    EmbeddingBagConfig(
                        name=table_name(table.name, group, groups),
                        num_embeddings=table.rows,
                        embedding_dim=table.dim or dim,
                        feature_names=[f.name for f in features],
                        pooling=PoolingType.MEAN if poolings == {"mean"} else PoolingType.SUM,
                    )
                )
        self.collection = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
        self.columns: dict[str, slice] = {}
        end = 0
        for feature in dataset.features:
            assert feature.table is not None or feature.kind == "numeric"
            width = 1 if feature.table is None else dataset.table(feature.table).dim or dim
            if feature.kind != "numeric":
                self.columns[feature.name] = slice(end, end + width)
                end += width
        for feature in dataset.numeric_features:
            self.columns[feature.name] = slice(end, end + 1)
            end += 1
        self.width = end
        """Width of one group's output, with the numeric features that the ranker appends."""

        # TorchRec names a feature's output after its table too when it has several. The order of the columns it
        # returns depends on the sharding plan: they are always picked by key.
        keys = [
            [
                f.name if len(groups) == 1 else f"{f.name}@{table_name(str(f.table), group, groups)}"
                for f in dataset.sparse_features
            ]
            for group in groups
        ]
        self.regroup = Regroup(dict(zip(groups, keys, strict=True)))

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Pooled embeddings [B, ΣD] of every group, features in the dataset's order."""
        return self.regroup(self.collection(sparse))
