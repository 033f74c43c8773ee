"""A ranking model whole: embedding tables, and a dense network from what is looked up to one logit a task."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recmtl.config import Config, InteractionConfig, ModelConfig, SequenceConfig, find_model
from recmtl.models.base import Inputs, Model
from recmtl.models.embeddings import Embeddings
from recmtl.models.histories import Histories
from recmtl.models.input_layers import InputLayers
from recmtl.schema import Dataset, Task


class RankingModel(nn.Module):
    r"""From ids and numbers to logits: score(embed(sparse), numeric).

    It needs no process group: with its tables on a real device it can be called as it is; with tables on ``meta`` a
    sharding plan gives them memory. Between `embed` and `score` lies the seam where micro-batches cut rows and
    weightings look at gradients.

    Args:
        dataset: tables and features.
        tasks: the tasks, in the order of the logits.
        config: the `model` section of the configuration.
        dim: embedding dimension of the tables that the recipe gives none.
        dtype: of the tables, float32 or float16.
        interaction: the `interaction` section of the configuration; none: its defaults.
        dropout: of the pooled embeddings.
        amp: run the dense network under bfloat16 autocast; logits stay float32.
        device: of the tables; see `Embeddings`. The dense network is made on the CPU.
        sequence: the `sequence` section of the configuration; None: its defaults.

    Shape:
        sparse: keys are feature names, stride B; numeric: float32 [B, N]; output: float32 logits [B, T].

    Raises:
        UserError: the model does not go with these tasks or tables.
    """

    def __init__(
        self,
        dataset: Dataset,
        tasks: tuple[Task, ...],
        config: ModelConfig,
        *,
        dim: int,
        dtype: str = "float32",
        interaction: InteractionConfig | None = None,
        dropout: float = 0.0,
        amp: bool = False,
        device: str = "meta",
        sequence: SequenceConfig | None = None,
    ) -> None:
        super().__init__()
        cls: type[Model] = find_model(config.name).load()
        self.amp, sequence = amp, sequence or SequenceConfig()
        table_sets = cls.table_sets(config, tasks)
        self.embeddings = Embeddings(dataset, dim, table_sets, dtype, device, sequence)
        layers = InputLayers(
            interaction or InteractionConfig(),
            dropout,
            table_sets,
            self.embeddings.columns,
            self.embeddings.width,
            sum(feature.width for feature in dataset.dense_features),
        )
        self.dense = cls(config, Inputs(tasks, layers.width, layers.columns))
        if not layers.change_nothing:
            self.dense.read_through(layers)
        self.histories = Histories(self.embeddings, sequence, amp=amp) if self.embeddings.histories else None

    @classmethod
    def from_config(
        cls, config: Config, dataset: Dataset, tasks: tuple[Task, ...], device: str = "meta"
    ) -> RankingModel:
        """The model that a run's configuration describes."""
        return cls(
            dataset,
            tasks,
            config.model,
            dim=config.embedding.dim,
            dtype=config.embedding.dtype,
            interaction=config.interaction,
            dropout=config.embedding.dropout,
            amp=config.training.amp == "bf16",
            device=device,
            sequence=config.sequence,
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All but the tables, by attribute: what every rank holds whole."""
        return {"dense": self.dense} | ({} if self.histories is None else {"histories": self.histories})

    def forward(self, sparse: KeyedJaggedTensor, numeric: Tensor) -> Tensor:
        """Logits [B, T]."""
        return self.score(self.embed(sparse), numeric)

    def embed(
        self, sparse: KeyedJaggedTensor, longest: Mapping[str, int] | None = None, rows_at_once: int = 0
    ) -> dict[str, Tensor]:
        """Pooled embeddings and encoded histories, float32 [B, ΣD], of every table set by its name.

        Args:
            sparse: the ids.
            longest: most items of a row, by sequence; see `Histories`.
            rows_at_once: rows whose histories are encoded at a time; 0: all.
        """
        if self.histories is None:
            return self.embeddings(sparse)
        rows = self.embeddings.look_up(sparse)
        return self.histories(self.embeddings(sparse), rows, sparse, longest, rows_at_once)

    def score(self, x: dict[str, Tensor], numeric: Tensor) -> Tensor:
        """Logits [B, T] from pooled embeddings and histories, as `embed` gives them, and numbers [B, N]."""
        outputs, tasks = self.outputs(x, numeric), len(self.dense.inputs.tasks)
        return outputs if outputs.shape[1] == tasks else outputs[:, :tasks]

    def outputs(self, x: dict[str, Tensor], numeric: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """As `score`, followed by what the model gives in training beside its logits [B, T + R].

        Args:
            x: as `embed` gives them.
            numeric: [B, N].
            parameters: to take in place of those of `dense`, by name.
        """
        x = _append(x, numeric)
        with self._autocast(numeric):
            outputs = self.dense(x) if parameters is None else functional_call(self.dense, dict(parameters), (x,))
        return outputs.float()

    def conditional_logits(self, x: dict[str, Tensor], numeric: Tensor) -> Tensor:
        """As `score`, of p(task | parent) or p(task | not parent) where the model composes probabilities of tasks."""
        with self._autocast(numeric):
            return self.dense.conditional_logits(self.dense.read(_append(x, numeric))).float()

    def _autocast(self, numeric: Tensor) -> AbstractContextManager:
        return torch.autocast(numeric.device.type, dtype=torch.bfloat16) if self.amp else nullcontext()


def _append(x: dict[str, Tensor], numeric: Tensor) -> dict[str, Tensor]:
    """The numeric features beside the pooled embeddings of every table set."""
    if not numeric.shape[1]:
        return x
    return {table_set: torch.cat([values, numeric], dim=1) for table_set, values in x.items()}
