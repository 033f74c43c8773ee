"""All embedding tables of a model. Those that pool are one EmbeddingBagCollection, which FBGEMM looks up in one kernel,
those of sequences an EmbeddingCollection for each dimension.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recmtl.config import SequenceConfig
from recmtl.errors import UserError
from recmtl.features import is_list, is_sequence
from recmtl.models.base import SHARED
from recmtl.models.sequences import History, encoder_class
from recmtl.schema import Dataset, Feature, Table

DATA_TYPES = {"float32": DataType.FP32, "float16": DataType.FP16}
"""TorchRec's names of what `embedding.dtype` offers. FBGEMM rounds bfloat16 to the nearest on GPUs, which loses most
updates, and has none on CPUs."""


TABLE_PATH = re.compile(r"\bembeddings\.(?:collection\.embedding_bags|unpooled\.\d+\.embeddings)\.([^.]+)\.weight\b")
"""Where `Embeddings` has the weight of a table, in names of parameters and of their optimisers' states."""


def table_of(name: str) -> str | None:
    """The table that a parameter, or an optimiser's state, is of, by its name; None: it is of none."""
    found = TABLE_PATH.search(name)
    return None if found is None else found[1]


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

    def forward(self, pooled: KeyedTensor | KeyedJaggedTensor) -> dict[str, Tensor]:
        """Values [B, ΣD] of every table set; [B, 0] where there are no keys, or from ids that nothing pools."""
        if isinstance(pooled, KeyedJaggedTensor):
            # With a gradient, as weightings ask for one; it has no values.
            nothing = torch.empty(pooled.stride(), 0, device=pooled.device(), requires_grad=True)
            return dict.fromkeys(self.keys, nothing)
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
    """Embeddings of all sparse features, once for every table set: pooled ones, and those of sequences row by row.

    A table lies in one collection only: if any of its features is a sequence, all of them are looked up unpooled.

    Args:
        dataset: tables and features.
        dim: embedding dimension of the tables that the recipe gives none.
        table_sets: names of the copies of every table (most models want one, STEM one a task and a shared one).
        dtype: of the tables, float32 or float16; what is looked up is float32 either way.
        device: of the tables. On ``meta`` they get memory where the sharding plan puts them; elsewhere they start
            uniform in ±1/√rows and can be looked up at once.
        sequence: how histories are encoded; None: by default.

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
        sequence: SequenceConfig | None = None,
    ) -> None:
        super().__init__()
        if len(set(table_sets)) < len(table_sets):
            raise UserError(
                f"a task is called '{SHARED}', as this model calls the tables of all tasks; rename the task"
            )
        self.table_sets = tuple(table_sets)
        unpooled = {f.table for f in dataset.sparse_features if is_sequence(f)}

        def configs(table_set: str) -> list[BaseEmbeddingConfig]:
            found: list[BaseEmbeddingConfig] = []
            for table in dataset.tables:
                fields: dict[str, Any] = {
                    "name": table_name(table.name, table_set, table_sets),
                    "num_embeddings": table.rows,
                    "embedding_dim": table.dim or dim,
                    "data_type": DATA_TYPES[dtype],
                    "feature_names": [f.name for f in dataset.sparse_features if f.table == table.name],
                }
                is_unpooled, pooling = table.name in unpooled, _pooling(dataset, table)
                found.append(
                    EmbeddingConfig(**fields) if is_unpooled else EmbeddingBagConfig(**fields, pooling=pooling)
                )
            return found

        by_set = {table_set: configs(table_set) for table_set in table_sets}
        self.tables = [table for tables_of_set in by_set.values() for table in tables_of_set]
        """All tables; none where all features are numeric, and then there is no collection: nothing to shard."""
        bags = [table for table in self.tables if isinstance(table, EmbeddingBagConfig)]
        self.collection = EmbeddingBagCollection(bags, device=torch.device(device)) if bags else None
        """The tables that pool."""
        by_dim: dict[int, list[EmbeddingConfig]] = {}
        for table in self.tables:
            if isinstance(table, EmbeddingConfig):
                by_dim.setdefault(table.embedding_dim, []).append(table)
        self.unpooled = nn.ModuleDict(
            {str(d): EmbeddingCollection(tables, device=torch.device(device)) for d, tables in by_dim.items()}
        )
        """The other tables, by dimension."""
        self.task_tables = [table for table_set in table_sets if table_set != SHARED for table in by_set[table_set]]
        """The tables of tasks' own."""

        # Features lie in x table by table, as FBGEMM returns them where nothing is cut: those that it pools, then those
        # of tables with sequences, then histories, then the numeric ones.
        sparse = [f for table in dataset.tables for f in dataset.sparse_features if f.table == table.name]
        dims = {f.name: dataset.table(str(f.table)).dim or dim for f in sparse}
        pooled = [f for f in sparse if f.table not in unpooled]
        self.unpooled_features = [f for f in sparse if f.table in unpooled and not is_sequence(f)]
        """Features of tables with sequences that are none themselves."""
        sequence = sequence or SequenceConfig()
        self.histories = _histories([f for f in dataset.sparse_features if is_sequence(f)], dims, sequence)
        widths = {f.name: dims[f.name] for f in (*pooled, *self.unpooled_features)}
        widths |= {h.name: encoder_class(h, sequence).output_width(h, sequence) for h in self.histories}
        widths |= {f.name: f.width for f in dataset.dense_features}
        ends = list(accumulate(widths.values()))
        self.columns = {name: slice(end - widths[name], end) for name, end in zip(widths, ends, strict=True)}
        """Where features and histories lie in x, by name."""
        self.width = ends[-1]
        """Width of x: of one table set's output and the numeric features that follow it."""
        self.lengths = {f.name: f.mean_length for f in sparse}
        """Ids in a row of every sparse feature, on average; 1 where it is not known."""

        # The order of the columns that TorchRec returns depends on the sharding plan: they are always picked by key.
        self.regroup = Regroup(
            {table_set: [self.key(feature, table_set) for feature in pooled] for table_set in table_sets}
        )

    def key(self, feature: Feature, table_set: str) -> str:
        """TorchRec's name of what is looked up for a feature: with that of its table where it has several."""
        table = table_name(str(feature.table), table_set, self.table_sets)
        return feature.name if len(self.table_sets) == 1 else f"{feature.name}@{table}"

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Pooled embeddings [B, ΣD] of every table set; see `columns` for where features lie."""
        return self.regroup(sparse if self.collection is None else self.collection(sparse))

    def look_up(self, sparse: KeyedJaggedTensor) -> list[Any]:
        """Embeddings of the other tables: {key: JaggedTensor of values [n, D]} of every dimension."""
        return [collection(sparse) for collection in self.unpooled.values()]


def _histories(sequences: list[Feature], dims: dict[str, int], config: SequenceConfig) -> tuple[History, ...]:
    """The histories that sequences are columns of, in the order in which they appear."""
    by_history: dict[str, list[Feature]] = {}
    for feature in sequences:
        by_history.setdefault(feature.history, []).append(feature)
    found = []
    for name, features in by_history.items():
        ordered = sorted(features, key=lambda feature: not feature.target)
        with_target = [dims[feature.name] for feature in features if feature.target]
        matches = len(with_target) if config.match else 0
        total = sum(dims[feature.name] for feature in features)
        found.append(History(name, tuple(ordered), sum(with_target), total, matches))
    return tuple(found)


def _pooling(dataset: Dataset, table: Table) -> PoolingType:
    """How a table's list features pool, each by its own choice; for one id a row sum and mean are the same."""
    lists = [f for f in dataset.sparse_features if f.table == table.name and is_list(f) and not is_sequence(f)]
    poolings = {f.pooling for f in lists} or {"sum"}
    if len(poolings) > 1:
        raise UserError(f"table '{table.name}': its list features must all pool with sum or all with mean")
    return PoolingType.MEAN if poolings == {"mean"} else PoolingType.SUM
