"""Scores new rows with a run's model, sharded over the ranks: for tables that fit no single device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx import Proxy
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recmtl.data.read.batch import Batch
from recmtl.distributed.context import DistContext, process_group
from recmtl.features import FeatureKinds
from recmtl.inference.inputs import Inputs
from recmtl.models.predictions import predictions
from recmtl.models.ranking_model import RankingModel
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.outputs import conditional_places, output_columns
from recmtl.training.sharded import ShardedModel
from recmtl.training.trained import TrainedRun

ROWS_AT_ONCE = 4096
"""Rows of a rank that go through the network at a time."""


@contextmanager
def run_scorer(run: Path) -> Iterator[RunScorer | None]:
    """A run's best model on all ranks that were started, to be used as a context.

    Yields:
        The model on the first rank; None on the others, after they have done their part.

    Raises:
        UserError: the run is not whole.
    """
    trained = TrainedRun(run)
    with process_group(trained.config.training.device) as context:
        scorer = RunScorer(trained, context)
        if not context.is_first:
            scorer.follow()
            yield None
            return
        try:
            yield scorer
        finally:
            scorer.end()


class ScoreModule(nn.Module):
    """What is sharded to score: a ranking model without labels or losses.

    Args:
        model: from ids and numbers to logits. It has the name that it has in a `TrainModule`, and so in checkpoints.
    """

    def __init__(self, model: RankingModel) -> None:
        super().__init__()
        self.model, self.conditional = model, conditional_places(model)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """No loss, and predictions, float32 [B, T + C], in the order of `output_columns`."""
        pooled = self.model.embed(batch.sparse, batch.longest)
        if isinstance(pooled, Proxy):
            # TorchRec's pipeline traces this function, only to find which part of a batch is looked up.
            return pooled
        found = predictions(self.model.score(pooled, batch.numeric), self.model.dense.inputs.tasks)
        if self.conditional:
            conditional = self.model.conditional_logits(pooled, batch.numeric)
            found = torch.cat([found, conditional[:, self.conditional].sigmoid()], dim=1)
        return found.new_zeros(()), found


@dataclass(frozen=True)
class Part:
    """What one rank scores of a piece of rows."""

    inputs: Inputs
    size: int
    """Rows to pad to, the same on all ranks."""
    all_rows: int
    """Rows of the piece on all ranks together."""


class RunScorer(ShardedModel):
    """A run's best model on all ranks; the first one drives, the others `follow`.

    Args:
        trained: the run.
        context: this process.

    Raises:
        UserError: the run's checkpoint is missing or damaged, or the model does not fit.
    """

    def __init__(self, trained: TrainedRun, context: DistContext) -> None:
        self.trained, self.context, self.config = trained, context, trained.config
        dataset = trained.dataset
        self.recipe, self.encoder, self.source_columns = trained.recipe, trained.encoder, dataset.source_columns
        self.kinds = FeatureKinds(dataset.features)
        self.keys = [kind.feature.name for kind in (*self.kinds.categorical, *self.kinds.lists)]
        self.place(dataset, trained.tasks, ROWS_AT_ONCE, self._make_module, trains=False)
        with self.explain_oom():
            Checkpoints(trained.folder / "checkpoints", self).load_whole(trained.checkpoint)
        self.model.eval()
        self._ended = False

    def _make_module(self) -> ScoreModule:
        model = self.trained.make_model()
        self._outputs = output_columns(model)
        module = ScoreModule(model).eval()
        for network in model.networks.values():
            network.to(self.context.device)
        return module

    def outputs(self, *, conditional: bool) -> Sequence[str]:
        """Names of the columns that are predicted."""
        return self._outputs if conditional else self._outputs[: len(self.trained.tasks)]

    def scores(self, batches: Iterable[Inputs]) -> Iterator[np.ndarray]:
        """Probabilities of every batch; on the first rank only."""
        waiting: deque[int] = deque()

        def pieces() -> Iterator[Inputs]:
            for batch in batches:
                waiting.append(batch.rows)
                at_once = batch.at_once(ROWS_AT_ONCE) * self.context.world_size
                for start in range(0, batch.rows, at_once):
                    yield batch.slice(start, min(start + at_once, batch.rows))

        ready: np.ndarray = np.empty((0, len(self.outputs(conditional=True))), np.float32)
        for scores in self._run(self._deal_out(pieces())):
            ready = np.concatenate([ready, scores])
            while waiting and len(ready) >= waiting[0]:
                rows = waiting.popleft()
                yield ready[:rows]
                ready = ready[rows:]
        yield from (ready[:0] for _ in waiting)  # batches without rows

    def follow(self) -> None:
        """Do this rank's part until the first one has no more rows."""
        for _ in self._run(self._received()):
            pass

    def end(self) -> None:
        """Let the other ranks go; called on the first one, whatever happened there."""
        if not self._ended:
            self._ended = True
            self._scatter([None] * self.context.world_size)

    @torch.no_grad()
    def _run(self, parts: Iterator[Part]) -> Iterator[np.ndarray]:
        """Probabilities of the rows of all ranks, in their order, piece by piece; on the other ranks nothing."""
        rows: deque[int] = deque()

        def to_batches() -> Iterator[Batch]:
            for part in parts:
                rows.append(part.all_rows)
                yield self._batch(part)

        batches = to_batches()
        with suppress(StopIteration):
            while True:
                with self.explain_oom():
                    scores: Any = self.progress(batches)
                scores = scores.cpu()
                gathered = [torch.empty_like(scores) for _ in range(self.context.world_size)]
                dist.gather(scores, gathered if self.context.is_first else None, dst=0, group=self.context.cpu_group)
                if self.context.is_first:
                    yield torch.cat(gathered)[: rows.popleft()].numpy()

    def _deal_out(self, pieces: Iterator[Inputs]) -> Iterator[Part]:
        """Give every rank an equal part of every piece."""
        for piece in pieces:
            size = -(-piece.rows // self.context.world_size)
            bounds = [min(rank * size, piece.rows) for rank in range(self.context.world_size + 1)]
            parts = [piece.slice(*some) for some in pairwise(bounds)]
            mine = self._scatter([Part(part, size, piece.rows) for part in parts])
            assert mine is not None
            yield mine
        self.end()

    def _received(self) -> Iterator[Part]:
        while part := self._scatter(None):
            yield part

    def _scatter(self, parts: list[Any] | None) -> Part | None:
        """Hand out the first rank's parts; returns this rank's."""
        received: list[Part | None] = [None]
        dist.scatter_object_list(received, parts, src=0, group=self.context.cpu_group)
        return received[0]

    def _batch(self, part: Part) -> Batch:
        """A batch of `part.size` rows, padded with id 0: all ranks' must have as many."""
        inputs, size = part.inputs, part.size
        padding = size - inputs.rows
        ids = np.pad(inputs.ids, ((0, 0), (0, padding)))
        numeric = np.pad(inputs.numeric, ((0, padding), (0, 0)))
        lengths = [np.ones(ids.size, np.int32), *(np.pad(lengths, (0, padding)) for _, lengths in inputs.lists)]
        sparse = KeyedJaggedTensor(
            self.keys,
            torch.from_numpy(np.concatenate([ids.reshape(-1), *(values for values, _ in inputs.lists)])),
            lengths=torch.from_numpy(np.concatenate(lengths)),
            # TorchRec would count them on the device, and the host wait for it.
            length_per_key=[size] * len(ids) + [len(values) for values, _ in inputs.lists],
            # Without keys there are no lengths to tell the stride by.
            **({} if self.keys else {"stride": size}),
        )
        tasks = len(self.trained.tasks)
        numbers = torch.from_numpy(numeric)
        longest = {
            kind.feature.name: int(lengths.max(initial=0))
            for kind, (_, lengths) in zip(self.kinds.lists, inputs.lists, strict=True)
        }
        return Batch(sparse, numbers, torch.zeros(size, tasks), torch.zeros(size), inputs.rows, longest=longest)
