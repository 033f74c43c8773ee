"""The trainer people write first: an nn.Embedding a table, dense Adam over everything, a DataLoader over rows.

The same model in the same sizes on the same data as recmtl's `mmoe`, for benchmarks/throughput.py to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from recmtl.data.dataset import Dataset, label_column
from recmtl.models.mmoe import MMoEConfig


class Examples(TorchDataset):
    """Rows in memory, handed out one by one."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        labels = [label_column(task.name) for task in dataset.tasks]
        ids = [feature.name for feature in dataset.sparse_features]
        table = pq.read_table(dataset.files(folder, "train"), columns=[*ids, *labels])
        self.ids = np.stack([table[name].to_numpy() for name in ids], axis=1).astype(np.int64)
        self.labels = np.stack([table[name].to_numpy() for name in labels], axis=1).astype(np.float32)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[index], self.labels[index]


class PlainMMoE(nn.Module):
    """MMoE with one nn.Embedding a table, and experts, gates and towers in lists."""

    def __init__(self, dataset: Dataset, config: MMoEConfig, dim: int) -> None:
        super().__init__()
        self.columns = [str(feature.table) for feature in dataset.sparse_features]
        self.tables = nn.ModuleDict({table.name: nn.Embedding(table.rows, dim) for table in dataset.tables})
        width, tasks = dim * len(self.columns), len(dataset.tasks)
        self.experts = nn.ModuleList(_mlp(width, config.expert) for _ in range(config.experts))
        self.gates = nn.ModuleList(nn.Linear(width, config.experts) for _ in range(tasks))
        self.towers = nn.ModuleList(
            nn.Sequential(_mlp(config.expert[-1], config.tower), nn.Linear(config.tower[-1], 1)) for _ in range(tasks)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, T] from ids [B, C]."""
        x = torch.cat([self.tables[table](ids[:, i]) for i, table in enumerate(self.columns)], dim=1)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = torch.softmax(gate(x), dim=1)
            logits.append(tower((weights.unsqueeze(2) * experts).sum(dim=1)))
        return torch.cat(logits, dim=1)


def _mlp(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for last, size in zip((width, *hidden), hidden, strict=False):
        layers += [nn.Linear(last, size), nn.ReLU()]
    return nn.Sequential(*layers)


class PlainTrainer:
    """Steps of the plain trainer.

    Args:
        folder: the prepared folder; its training split has to fit into memory.
        dataset: what ``dataset.json`` says of it; categorical features only.
        config: sizes of the model.
        dim: embedding dimension.
        batch_size: rows in a batch.
        lr: of Adam.
        device: where the model is.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        config: MMoEConfig,
        *,
        dim: int,
        batch_size: int,
        lr: float,
        device: torch.device,
    ) -> None:
        self.device = device
        self.model = PlainMMoE(dataset, config, dim).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)
        self.loss = nn.BCEWithLogitsLoss()
        self.loader: DataLoader = DataLoader(
            Examples(folder, dataset), batch_size=batch_size, shuffle=True, drop_last=True
        )
        self.batches = self.endless()

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The loader's batches, epoch after epoch."""
        while True:
            yield from self.loader

    def step(self) -> None:
        """Load a batch, go forward and backward, update everything."""
        ids, labels = self.load()
        self.update(ids.to(self.device), labels.to(self.device))

    def load(self) -> tuple[Tensor, Tensor]:
        """The loader alone: ids [B, C] and labels [B, T]."""
        return next(self.batches)

    def update(self, ids: Tensor, labels: Tensor) -> None:
        """One step on a given batch."""
        logits = self.model(ids)
        loss = sum((self.loss(logits[:, task], labels[:, task]) for task in range(labels.shape[1])), torch.zeros(()))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
