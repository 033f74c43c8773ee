"""``recmtl predict``: new raw files in, predicted probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, tee
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.data.prepare.new_rows import NewRows, open_new_rows
from recmtl.data.recipe import Recipe
from recmtl.encoding.encoder import Encoder
from recmtl.errors import UserError
from recmtl.inference.inputs import Collator, Inputs
from recmtl.runtime.folders import complete_or_absent
from recmtl.runtime.progress import Progress
from recmtl.runtime.storage import local_path
from recmtl.schema import SourceColumns

PART_ROWS = 2**21
"""Rows of a file, at most about."""


class Scorer(Protocol):
    """A trained model: an export, or a run on all ranks."""

    @property
    def recipe(self) -> Recipe:
        """Of the data that it was trained on."""

    @property
    def encoder(self) -> Encoder:
        """Of that data."""

    @property
    def source_columns(self) -> SourceColumns:
        """Names and types of the columns that the raw files had then."""

    def outputs(self, *, conditional: bool) -> Sequence[str]:
        """Names of the columns that are predicted."""

    def scores(self, batches: Iterable[Inputs]) -> Iterator[np.ndarray]:
        """Probabilities, float32 [B, outputs], of every batch."""


def predict(
    model: Scorer,
    raw: Path,
    out: Path,
    *,
    keep: tuple[str, ...] | None = None,
    since: str | None = None,
    conditional: bool = False,
    memory_limit: str = "4GB",
    threads: int | None = None,
) -> int:
    """Score the rows that the query of a model's recipe yields from new raw files.

    Args:
        model: what scores.
        raw: folder of the raw files.
        out: folder to write, complete or absent: ``part-*.parquet`` with the kept columns and ``p_TASK``, in an
            order that the rows alone decide.
        keep: columns of the query; None: all single values.
        since: only rows whose split column is that moment or later.
        conditional: write also conditional probabilities, of models that compose them.
        memory_limit: memory of the process, the model left out.
        threads: number of threads of the query; all cores when None.

    Returns:
        The number of rows.

    Raises:
        UserError: a raw file, a column or `out` has a mistake; nothing is written.
    """
    outputs = list(model.outputs(conditional=conditional))
    with (
        complete_or_absent(out) as work,
        Progress(timed=False) as progress,
        open_new_rows(
            model.recipe,
            raw,
            model.encoder,
            model.source_columns,
            keep=keep,
            since=since,
            memory_limit=memory_limit,
            threads=threads,
            spill=work / "spill",
            progress=progress,
        ) as rows,
    ):
        if taken := sorted(set(outputs) & set(rows.kept)):
            raise UserError(f"--keep: column {taken[0]!r} is also what is predicted; call it otherwise in sql")
        return _write(work / "data", rows, outputs, _scored(rows, model))


def _scored(rows: NewRows, model: Scorer) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Every batch with its probabilities. The scorer may read some batches ahead."""
    encoder, collator = model.encoder, Collator(model.encoder.features)
    for_scorer, for_writer = tee(rows.batches)
    names = encoder.schema.names
    columns = ({name: batch.column(name) for name in names} for batch in for_scorer)
    inputs = (collator.collate(encoder.encode(some, aligned=True)) for some in columns)
    yield from zip(for_writer, model.scores(inputs), strict=True)


def _write(folder: Path, rows: NewRows, outputs: list[str], scored: Iterable[tuple[pa.RecordBatch, np.ndarray]]) -> int:
    kept = [rows.schema.field(name) for name in rows.kept]
    layout = pa.schema([*kept, *(pa.field(name, pa.float32()) for name in outputs)])
    numbers = count()

    def next_part() -> pq.ParquetWriter:
        return pq.ParquetWriter(local_path(folder / f"part-{next(numbers):05d}.parquet"), layout)

    file, in_file, total = next_part(), 0, 0
    try:
        for batch, values in scored:
            if in_file and in_file + batch.num_rows > PART_ROWS:
                file.close()
                file, in_file = next_part(), 0
            columns = [batch.column(field.name) for field in kept]
            columns += [pa.array(values[:, place]) for place in range(len(outputs))]
            file.write_batch(pa.RecordBatch.from_arrays(columns, schema=layout))
            in_file += batch.num_rows
            total += batch.num_rows
    finally:
        file.close()
    return total
