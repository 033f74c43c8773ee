"""All embedding tables of a run in one EmbeddingBagCollection, so that FBGEMM looks them up in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_configs import DataType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recmtl.data.dataset import Dataset
from recmtl.errors import UserError
from recmtl.models.base import SHARED

DATA_TYPES = {"float32": DataType.FP32, "float16": DataType.FP16}
"""TorchRec's names of what `embedding.dtype` offers. FBGEMM rounds bfloat16 to the nearest on GPUs, which loses most
updates, and has none on CPUs."""


def table_name(table: str, group: str, groups: Sequence[str]) -> str:
    """Name of a table's copy for one embedding group: the plain name when there is one group only.

    TorchRec keeps tables in a ModuleDict, where names of its own attributes (type, values, ...) are taken.
    """
    return table if len(groups) == 1 and not hasattr(nn.ModuleDict(), table) else f"{table}@{group}"


class Regroup(nn.Module):
    """Columns of a KeyedTensor by group: {group: its pieces side by side, in order}.

    In place of torchrec's KTRegroupAsDict, whose kernel walks over single rows on the CPU (nine tenths of a step).

    Args:
        groups: for every group its pieces, as (key, which of the key's `parts`).
        parts: every key holds so many pieces of equal width side by side.
    """

    def __init__(self, groups: dict[str, list[tuple[str, int]]], parts: int = 1) -> None:
        super().__init__()
        self.groups, self.parts = groups, parts

    def forward(self, pooled: KeyedTensor) -> dict[str, Tensor]:
        """Values [B, ΣD] of every group; [B, 0] where there are no keys."""
        if not pooled.keys():
            return dict.fromkeys(self.groups, pooled.values())
        places: dict[tuple[str, int], tuple[int, int]] = {}
        end = 0
        for key, width in zip(pooled.keys(), pooled.length_per_key(), strict=True):
            for part in range(self.parts):
                start, end = end, end + width // self.parts
                places[key, part] = start, end
        # Neighbours stay together: a group that is in order already is not copied.
        runs: list[tuple[int, int]] = []
        members: dict[str, list[tuple[int, int]]] = {}
        for group, pieces in self.groups.items():
            members[group] = _joined([places[piece] for piece in pieces])
            runs += members[group]
        runs.sort()
        widths = [stop - start for start, stop in runs]
        # Splitting into one piece would copy its gradient.
        spans = pooled.values().split(widths, dim=1) if len(runs) > 1 else [pooled.values()]
        values = dict(zip(runs, spans, strict=True))
        return {
            group: values[pieces[0]] if len(pieces) == 1 else torch.cat([values[piece] for piece in pieces], dim=1)
            for group, pieces in members.items()
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
    """Pooled embeddings of all sparse features, once for every embedding group.

    The tables are built on the meta device: they get memory where the sharding plan puts them.

    Args:
        dataset: tables and features.
        dim: embedding dimension of the tables that the recipe gives none.
        groups: names of the copies of every table (most models want one, STEM one a task and a shared one).
        layout: how the copies lie: `separate` tables, each with optimiser state of its own, or `side_by_side` in the
            rows of one wide table, which is looked up once and has one optimiser state a row for all of them.
        dtype: of the tables, float32 or float16; pooled embeddings are float32 either way.

    Raises:
        UserError: two features of one table pool differently, or two groups have one name.
    """

    def __init__(
        self,
        dataset: Dataset,
        dim: int,
        groups: Sequence[str] = (SHARED,),
        layout: str = "separate",
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        if len(set(groups)) < len(groups):
            raise UserError(
                f"a task is called '{SHARED}', as this model calls the tables of all tasks; rename the task"
            )
        parts = len(groups) if layout == "side_by_side" else 1
        copies = ["+".join(groups)] if parts > 1 else list(groups)
        configs = []
        for copy in copies:
            for table in dataset.tables:
                features = [f for f in dataset.sparse_features if f.table == table.name]
                # A list feature pools with its own choice; for one id a row sum and mean are the same.
                poolings = {f.pooling for f in features if f.kind == "list"} or {"sum"}
                if len(poolings) > 1:
                    raise UserError(f"table '{table.name}': its list features must all pool with sum or all with mean")
                configs.append(
                    EmbeddingBagConfig(
                        name=table_name(table.name, copy, copies),
                        num_embeddings=table.rows,
                        embedding_dim=(table.dim or dim) * parts,
                        data_type=DATA_TYPES[dtype],
                        feature_names=[f.name for f in features],
                        pooling=PoolingType.MEAN if poolings == {"mean"} else PoolingType.SUM,
                    )
                )
        self.tables = configs
        """All tables; none where all features are numeric, and then there is no collection: nothing to shard."""
        self.collection = EmbeddingBagCollection(tables=configs, device=torch.device("meta")) if configs else None
        own = [copy for copy in copies if copy in groups and copy != SHARED]
        names = {table_name(table.name, copy, copies) for copy in own for table in dataset.tables}
        self.task_tables = [table for table in configs if table.name in names]
        """The tables of tasks' own."""

        # Features lie in x table by table, as FBGEMM returns them where nothing is cut, then the numeric ones.
        sparse = [f for table in dataset.tables for f in dataset.sparse_features if f.table == table.name]
        widths = {f.name: dataset.table(str(f.table)).dim or dim for f in sparse}
        widths |= {f.name: 1 for f in dataset.numeric_features}
        ends = list(accumulate(widths.values()))
        self.columns = {name: slice(end - widths[name], end) for name, end in zip(widths, ends, strict=True)}
        self.width = ends[-1]
        """Width of one group's output, with the numeric features that the ranker appends."""
        self.lengths = {f.name: 1.0 if f.mean_length is None else f.mean_length for f in sparse}
        """Ids in a row of every sparse feature, on average; 1 where it is not known."""

        # TorchRec names a feature's output after its table too when it has several. The order of the columns it
        # returns depends on the sharding plan: they are always picked by key.
        pieces = {
            group: [
                (f.name, i) if len(copies) == 1 else (f"{f.name}@{table_name(str(f.table), group, groups)}", 0)
                for f in sparse
            ]
            for i, group in enumerate(groups)
        }
        self.regroup = Regroup(pieces, parts)

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Pooled embeddings [B, ΣD] of every group; see `columns` for where features lie."""
        if self.collection is None:
            # With a gradient, as weightings ask for one; it has no values.
            nothing = torch.empty(sparse.stride(), 0, device=sparse.device(), requires_grad=True)
            return self.regroup(KeyedTensor([], [], nothing))
        return self.regroup(self.collection(sparse))
