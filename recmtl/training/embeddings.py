"""``recmtl embeddings`` with a run in place of an export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recmtl.inference.embeddings import copies_of, write_embeddings
from recmtl.inference.tables import BLOCK_ROWS
from recmtl.runtime.folders import scratch_folder
from recmtl.training.trained import TrainedRun
from recmtl.training.weights import check_whole, read_weights, stored_tables


def run_embeddings(run: Path, table: str, out: Path) -> int:
    """Write the rows of all copies of a table of a run's best model; see `recmtl.inference.embeddings`.

    Raises:
        UserError: the run is not whole, or has no such table.
    """
    trained = TrainedRun(run)
    model = trained.make_model()
    files = {bag.name: (bag.name,) for bag in model.embeddings.tables}
    copies = copies_of(stored_tables(model, trained, files), table, str(run))
    check_whole(trained.checkpoint)
    with scratch_folder(out) as folder:
        weights = read_weights(trained.checkpoint, model, folder / "tables", only=[copy.key for copy in copies])
        rows = [(copy, _blocks(weights[copy.key])) for copy in copies]
        return write_embeddings(rows, run, trained.encoder, out)


def _blocks(weights: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(weights), BLOCK_ROWS):
        yield np.asarray(weights[start : start + BLOCK_ROWS], np.float32)
