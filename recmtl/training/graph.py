"""What an export computes: predictions from ids, in operations that PyTorch alone can run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.features import is_list, is_sequence
from recmtl.inference.tables import dequantize
from recmtl.models.embeddings import table_name
from recmtl.models.histories import matches
from recmtl.models.predictions import predictions
from recmtl.models.ranking_model import RankingModel
from recmtl.models.sequences import History
from recmtl.schema import Dataset
from recmtl.training.outputs import conditional_places

Lists = list[tuple[Tensor, Tensor]]
"""Of every list feature its ids, int32 [n], and where each row's begin, int64 [B]; of a sequence its ids, int32 [B, L],
padded, and how many each row has, int64 [B]."""
Tables = dict[str, list[Tensor]]
"""Rows [R, D] by table, or, of int8 tables, codes, uint8 [R, D], and scale and offset of each row, bfloat16 [R, 2]."""


class ScoringGraph(nn.Module):
    """A ranking model whose tables are inputs: they lie in files beside the traced graph, mapped into memory.

    It looks up with PyTorch's own operations in place of TorchRec's, so that whoever runs an export needs neither
    TorchRec nor FBGEMM.

    Args:
        model: the networks, with their weights; its tables are not used.
        dataset: tables and features.

    Shape:
        ids: int32 [C, B], of the categorical features; numeric: float32 [B, N]; output: float32 predictions [B, T],
        and, of a model that composes them, the conditional ones of the tasks with a parent [B, C].
    """

    def __init__(self, model: RankingModel, dataset: Dataset) -> None:
        super().__init__()
        # Only the networks have weights that belong into the graph.
        self.dense, self.score, self.conditional_logits = model.dense, model.score, model.conditional_logits
        self.histories = model.histories
        self.conditional = conditional_places(model)
        sparse = dataset.sparse_features
        single = [feature.name for feature in sparse if not is_list(feature)]
        several = [feature.name for feature in sparse if is_list(feature)]
        by_name = {feature.name: feature for feature in sparse}
        self.sets = list(model.dense.table_sets(model.dense.config, model.dense.inputs.tasks))
        self.places = {
            name: several.index(name) if is_list(feature) else single.index(name) for name, feature in by_name.items()
        }
        self.features = [
            by_name[name] for name in model.embeddings.columns if name in by_name and not is_sequence(by_name[name])
        ]
        self.by_name = by_name

    def forward(self, ids: Tensor, numeric: Tensor, lists: Lists, tables: Tables) -> tuple[Tensor, ...]:
        """Predictions; see the class for shapes."""
        x = {name: self._embed(name, ids, numeric, lists, tables) for name in self.sets}
        predicted = predictions(self.score(x, numeric), self.dense.inputs.tasks)
        if not self.conditional:
            return (predicted,)
        return predicted, self.conditional_logits(x, numeric).sigmoid()[:, self.conditional]

    def _embed(self, table_set: str, ids: Tensor, numeric: Tensor, lists: Lists, tables: Tables) -> Tensor:
        """Pooled embeddings and encoded histories of a table set, float32 [B, ΣD]."""
        of_set = {name: tables[table_name(str(f.table), table_set, self.sets)] for name, f in self.by_name.items()}
        pieces = []
        for feature in self.features:
            table, place = of_set[feature.name], self.places[feature.name]
            if is_list(feature):
                pieces.append(_pool(table, *lists[place], feature.pooling))
            else:
                pieces.append(_rows(table, ids[place]))
        if self.histories is not None:
            for history in self.histories.histories:
                items, lengths = self._items(history, ids, lists, of_set)
                targets = [_rows(of_set[name], ids[self.places[name]]) for name in history.targets]
                pieces.append(self.histories.encode(history, table_set, items, targets, lengths))
        return torch.cat(pieces, dim=1) if pieces else numeric[:, :0]

    def _items(
        self, history: History, ids: Tensor, lists: Lists, of_set: dict[str, list[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The items of a history [B, L, I], padded, and how many each row has [B]."""
        columns = [lists[self.places[feature.name]] for feature in history.sequences]
        pieces = [
            _rows(of_set[feature.name], padded.flatten()).unflatten(0, padded.shape)
            for feature, (padded, _) in zip(history.sequences, columns, strict=True)
        ]
        for feature, (padded, _) in zip(history.sequences[: history.matches], columns, strict=False):
            pieces.append(matches(padded, ids[self.places[feature.target]].unsqueeze(1)).unsqueeze(2))
        return torch.cat(pieces, dim=2), columns[0][1]


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
