"""Collects every row of a split once, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recmtl.distributed.context import DistContext
from recmtl.metrics.jackknife import FOLDS, folds_of
from recmtl.metrics.measure import Bins, Values, measure
from recmtl.schema import NO_USER

MIN_USERS = FOLDS
"""Where there are fewer users than that, rows are the sampling units: most folds would have no user."""


def _users(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] to the user of every row, counted from 0, −1 for none, int32 [n]; and what each user was called."""
    found = pa.array(group, mask=group == NO_USER).dictionary_encode()
    return found.indices.fill_null(-1).to_numpy(), found.dictionary.to_numpy()


class Metrics:
    """Collects logits and labels on the host and measures them on rank 0.

    A row takes 9 bytes a task, 8 for its group and 1 for its fold on its own rank, and some 60 on rank 0 while a task
    is measured.

    Args:
        tasks: their names, in the order of the logits.
        gauc: measure the AUC within groups, where rows have one.
        context: this process and the others.
    """

    def __init__(self, tasks: list[str], *, gauc: bool, context: DistContext) -> None:
        self.tasks, self.gauc, self.context = tasks, gauc, context
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.oracle: list[Tensor] = []
        self.group: list[Tensor] = []
        self.fold: list[Tensor] = []

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        rows: int,
        oracle: Tensor | None,
        group: Tensor | None,
        row_number: Tensor | None = None,
    ) -> None:
        """Add a batch; those after the first `rows` rows are padding.

        Args:
            logits: [B, T].
            labels: 0 or 1 [B, T].
            rows: how many are real.
            oracle: true probabilities [B, T], NaN where unknown.
            group: user of every row [B], `NO_USER` for none.
            row_number: place of every row in the split [B]; None: metrics without standard errors.
        """
        # Together, as every copy makes the host wait for a GPU.
        columns = [logits.float(), labels, *([] if oracle is None else [oracle])]
        parts = torch.cat([column[:rows] for column in columns], dim=1).cpu().T.split(len(self.tasks))
        self.logits.append(parts[0].contiguous())
        self.labels.append(parts[1].bool())
        self.oracle += [part.contiguous() for part in parts[2:]]
        if group is not None:
            self.group.append(group[:rows].cpu())
        if row_number is not None:
            self.fold.append(torch.from_numpy(folds_of(row_number[:rows].cpu().numpy())))

    def compute(self) -> tuple[dict[str, Values], dict[str, Bins]]:
        """Metrics and calibration bins by task over the rows of all ranks, the same on every rank."""
        group, folds = self._gather(self.group), self._gather(self.fold)
        users = None
        if group is not None:
            users, names = _users(group)
            if folds is not None and len(names) >= MIN_USERS:
                # Rows of one user resemble each other: a fold has all of a user's rows or none.
                folds = np.where(users < 0, folds, folds_of(names)[users])
        metrics: dict[str, Values] = {}
        bins: dict[str, Bins] = {}
        for i, task in enumerate(self.tasks):
            states = (self.logits, self.labels, self.oracle)
            logits, labels, oracle = (self._gather([part[i] for part in state]) for state in states)
            if logits is not None and labels is not None:
                metrics[task], bins[task] = measure(logits, labels, oracle, users if self.gauc else None, folds)
        return self.context.run_on_rank0(lambda: (metrics, bins))

    def _gather(self, parts: list[Tensor]) -> np.ndarray | None:
        """Rows of all ranks on rank 0; None elsewhere, and where the data has no such column."""
        rows = self.context.gather_rows(torch.cat(parts)) if parts else None
        return None if rows is None else rows.numpy()
