"""An export, opened: predicts columns of the recipe's query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recmtl.data.recipe import Recipe, load_recipe
from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError
from recmtl.inference.archive import load_compiled, load_graph, this_machine
from recmtl.inference.columns import as_arrays
from recmtl.inference.inputs import Collator, Inputs
from recmtl.inference.manifest import check_manifest
from recmtl.inference.signature import COMPILED, DELTA, MODEL, Signature
from recmtl.inference.tables import open_table
from recmtl.runtime.storage import is_file, is_folder
from recmtl.schema import ENCODER, RECIPE, SourceColumns

ROWS_AT_ONCE = 2048
"""Rows that go through the network at a time: more are slower, as their memory comes anew from the system."""


class ExportedModel:
    """A trained model that needs nothing but its folder.

    Tables and vocabularies are mapped into memory: processes on one machine share them.

    Args:
        folder: an export of `recmtl export`.
        verify: check every byte of the folder first; leave it out where another process has just done so.

    Raises:
        UserError: a file is missing, damaged or would be unpickled; names it.

    Example:
        >>> model = recmtl.load("export")                                         # doctest: +SKIP
        >>> model.predict({"user_id": [7, 7], "product_id": [1, 2]})["p_like"]    # doctest: +SKIP
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        if not is_folder(folder):
            raise UserError(f"{folder}: no such folder; give one that `recmtl export` wrote")
        if is_file(folder / DELTA):
            raise UserError(f"{folder}: a delta; apply it first: `recmtl apply-delta EXPORT {folder} OUT`")
        self.folder = folder
        self.version = check_manifest(folder) if verify else ""
        """12 hexadecimal digits that tell one export from another."""
        self.signature = Signature.load(folder)
        self.encoder = Encoder.load(folder / ENCODER)
        self.collator = Collator(self.encoder.features)
        dtype = self.signature.dtype
        self._tables = {table.key: open_table(folder, table, dtype) for table in self.signature.tables}
        if self.signature.compiled_for == this_machine():
            self._graph = load_compiled(folder / COMPILED)
        else:
            self._graph = load_graph(folder / MODEL)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the data that it was trained on."""
        return load_recipe(str(self.folder / RECIPE))

    @property
    def source_columns(self) -> SourceColumns:
        """Names and types of the columns of the raw files that it was trained on."""
        return self.signature.source_columns

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.signature.tasks

    @property
    def features(self) -> dict[str, pa.DataType]:
        """Names and types of the columns that `predict` reads: those of the recipe's query behind the features."""
        return dict(zip(self.encoder.schema.names, self.encoder.schema.types, strict=True))

    def predict(self, columns: pa.Table | pa.RecordBatch | Mapping[str, Any], *, conditional: bool = False) -> pa.Table:
        """Probabilities of every task, float32, in columns ``p_TASK``.

        Args:
            columns: of the recipe's query, as a table or as lists by name, all of one length; see `features`. Others
                are not looked at. None and NaN are missing; a value that the training rows did not have is unseen.
            conditional: give also ``p_TASK_given_PARENT``, of models that compose probabilities.

        Raises:
            UserError: a column is absent or of another type, or the lengths differ; names it.
        """
        outputs = self.outputs(conditional=conditional)
        encoded = self.encoder.encode(as_arrays(columns, self.encoder.schema))
        values = self.score(self.collator.collate(encoded))
        return pa.table({name: values[:, place] for place, name in enumerate(outputs)})

    def outputs(self, *, conditional: bool) -> Sequence[str]:
        """Names of the columns that are predicted."""
        tasks = len(self.tasks)
        return self.signature.outputs if conditional else self.signature.outputs[:tasks]

    def scores(self, batches: Iterable[Inputs]) -> Iterator[np.ndarray]:
        """Probabilities, float32 [B, outputs], of every batch."""
        return map(self.score, batches)

    def score(self, inputs: Inputs) -> np.ndarray:
        """Probabilities, float32 [B, outputs]."""
        rows = inputs.at_once(ROWS_AT_ONCE)
        starts = range(0, inputs.rows, rows)
        parts = [self._score(inputs.slice(start, min(start + rows, inputs.rows))) for start in starts]
        return np.concatenate([np.empty((0, len(self.signature.outputs)), np.float32), *parts])

    @torch.inference_mode()
    def _score(self, inputs: Inputs) -> np.ndarray:
        return torch.cat(list(self._graph(*to_tensors(inputs), self._tables)), dim=1).numpy()


def to_tensors(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """What the graph takes of rows: ids, numbers, and of every list feature its ids and where each row's begin.

    Of a sequence it is the ids padded to one length, int32 [B, L], and how many of them are a row's own, int64 [B].
    """
    lists = []
    for place, (ids, lengths) in enumerate(inputs.lists):
        if place in inputs.sequences:
            lists.append((torch.from_numpy(_padded(ids, lengths)), torch.from_numpy(lengths.astype(np.int64))))
        else:
            starts = np.cumsum(lengths, dtype=np.int64) - lengths
            lists.append((_tensor(ids), torch.from_numpy(starts)))
    return _tensor(inputs.ids), _tensor(inputs.numeric), lists


def _padded(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Ids of rows one after the other as [B, L]; L is 2 at least, as PyTorch makes graphs of their own for 0 and 1."""
    padded = np.zeros((len(lengths), max(2, lengths.max(initial=0))), np.int32)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = ids
    return padded


def _tensor(values: np.ndarray) -> torch.Tensor:
    """A tensor of an array that may be a part of a read-only Arrow buffer, or of a larger array: compiled code takes
    its elements to lie next to each other.
    """
    return torch.from_numpy(np.ascontiguousarray(values) if values.flags.writeable else values.copy())
