"""The trainer people write first: an nn.Embedding a column, dense Adam over everything, a DataLoader over rows.

The same network in the same sizes as recmtl's `mmoe`, for benchmarks/reference.py to compare with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from recmtl.config.models import MMoEConfig
from recmtl.schema import Dataset, label_column

INIT_STD = 0.01
"""Of the embeddings; nn.Embedding's own, 1, drowns what there is to learn."""


class Examples(TorchDataset):
    """Rows of one split in memory, handed out one by one. (NumPy's: rows of a DataFrame cost several times as much.)"""

    def __init__(self, folder: Path, dataset: Dataset, split: str) -> None:
        labels = [label_column(task.name) for task in dataset.tasks]
        ids = [feature.name for feature in dataset.sparse_features]
        table = pq.read_table(dataset.files(folder, split), columns=[*ids, *labels])
        self.ids = np.stack([table[name].to_numpy() for name in ids], axis=1).astype(np.int64)
        self.labels = np.stack([table[name].to_numpy() for name in labels], axis=1).astype(np.float32)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[index], self.labels[index]


def row_loader(folder: Path, dataset: Dataset, split: str, batch_size: int) -> DataLoader:
    """Batches of ids [B, C] and labels [B, T]; the training split's in another order every epoch."""
    train = split == "train"
    return DataLoader(Examples(folder, dataset, split), batch_size=batch_size, shuffle=train, drop_last=train)


class PlainMMoE(nn.Module):
    """MMoE with one nn.Embedding a column, and experts, gates and towers in lists."""

    def __init__(self, dataset: Dataset, config: MMoEConfig, dim: int) -> None:
        super().__init__()
        features = dataset.sparse_features
        embeddings = [nn.Embedding(dataset.table(str(f.table)).rows, dim) for f in features]
        for embedding in embeddings:
            nn.init.normal_(embedding.weight, std=INIT_STD)
        self.embeddings = nn.ModuleList(embeddings)
        width, tasks = dim * len(features), len(dataset.tasks)
        self.experts = nn.ModuleList(_mlp(width, config.expert_widths) for _ in range(config.experts))
        self.gates = nn.ModuleList(nn.Linear(width, config.experts) for _ in range(tasks))
        self.towers = nn.ModuleList(
            nn.Sequential(_mlp(config.expert_widths[-1], config.tower), nn.Linear(config.tower[-1], 1))
            for _ in range(tasks)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, T] from ids [B, C]."""
        x = torch.cat([embedding(ids[:, i]) for i, embedding in enumerate(self.embeddings)], dim=1)
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
    """The model and its optimiser.

    Args:
        dataset: tables and tasks; categorical features only.
        config: sizes of the model.
        dim: embedding dimension.
        lr: of Adam.
        device: where the model is.
    """

    def __init__(self, dataset: Dataset, config: MMoEConfig, *, dim: int, lr: float, device: torch.device) -> None:
        self.device = device
        self.model = PlainMMoE(dataset, config, dim).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)
        self.loss = nn.BCEWithLogitsLoss()

    def step(self, ids: Tensor, labels: Tensor) -> None:
        """Go forward and backward, update everything."""
        labels = labels.to(self.device)
        logits = self.model(ids.to(self.device))
        losses = [self.loss(logits[:, task], labels[:, task]) for task in range(labels.shape[1])]
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, ids: Tensor) -> Tensor:
        """Logits [B, T]."""
        return self.model(ids.to(self.device))
