"""What an export computes: predictions from ids, in operations that PyTorch alone can run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.features import is_list
from recmtl.inference.tables import dequantize
from recmtl.models.embeddings import table_name
from recmtl.models.predictions import predictions
from recmtl.models.ranking_model import RankingModel
from recmtl.schema import Dataset
from recmtl.training.outputs import conditional_places

Lists = list[tuple[Tensor, Tensor]]
"""Of every list feature its ids, int32 [n], and where each row's begin, int64 [B]."""
Tables = dict[str, list[Tensor]]
"""Rows [R, D] by table, or, of int8 tables, codes, uint8 [R, D], and scale and offset of each row, bfloat16 [R, 2]."""


class ScoringGraph(nn.Module):
    """A ranking model whose tables are inputs: they lie in files beside the traced graph, mapped into memory.

    It looks up with PyTorch's own operations in place of TorchRec's, so that whoever runs an export needs neither
    TorchRec nor FBGEMM.

    Args:
        model: the dense network, with its weights; its tables are not used.
        dataset: tables and features.

    Shape:
        ids: int32 [C, B], of the categorical features; numeric: float32 [B, N]; output: float32 predictions [B, T],
        and, of a model that composes them, the conditional ones of the tasks with a parent [B, C].
    """

    def __init__(self, model: RankingModel, dataset: Dataset) -> None:
        super().__init__()
        # Only the dense network has weights that belong into the graph.
        self.dense, self.score, self.conditional_logits = model.dense, model.score, model.conditional_logits
        self.conditional = conditional_places(model)
        sparse = dataset.sparse_features
        single = [feature.name for feature in sparse if not is_list(feature)]
        several = [feature.name for feature in sparse if is_list(feature)]
        self.sets = list(model.dense.table_sets(model.dense.config, model.dense.inputs.tasks))
        # In the order of `Embeddings.columns`: table by table.
        self.features = [
            (feature, several.index(feature.name) if is_list(feature) else single.index(feature.name))
            for table in dataset.tables
            for feature in sparse
            if feature.table == table.name
        ]

    def forward(self, ids: Tensor, numeric: Tensor, lists: Lists, tables: Tables) -> tuple[Tensor, ...]:
        """Predictions; see the class for shapes."""
        x = {name: self._embed(name, ids, numeric, lists, tables) for name in self.sets}
        predicted = predictions(self.score(x, numeric), self.dense.inputs.tasks)
        if not self.conditional:
            return (predicted,)
        return predicted, self.conditional_logits(x, numeric).sigmoid()[:, self.conditional]

    def _embed(self, table_set: str, ids: Tensor, numeric: Tensor, lists: Lists, tables: Tables) -> Tensor:
        """Pooled embeddings of a table set, float32 [B, ΣD]."""
        pieces = []
        for feature, place in self.features:
            table = tables[table_name(str(feature.table), table_set, self.sets)]
            if is_list(feature):
                pieces.append(_pool(table, *lists[place], feature.pooling))
            else:
                pieces.append(_rows(table, ids[place]))
        return torch.cat(pieces, dim=1) if pieces else numeric[:, :0]


def _rows(table: list[Tensor], ids: Tensor) -> Tensor:
    """Rows of a table, float32 [n, D]."""
    return dequantize([part.index_select(0, ids) for part in table])


def _pool(table: list[Tensor], ids: Tensor, starts: Tensor, mode: str) -> Tensor:
    """Sum or mean of the rows of each bag, float32 [B, D]; zeros for an empty one."""
    if len(table) == 1 and table[0].dtype == torch.float32:
        return F.embedding_bag(ids.long(), table[0], starts, mode=mode)
    # One row more than there are ids, in no bag: a table of none cannot be pooled.
    rows = F.pad(_rows(table, ids), (0, 0, 0, 1))
    places = torch.arange(ids.shape[0], device=ids.device)
    return F.embedding_bag(places, rows, starts, mode=mode)
