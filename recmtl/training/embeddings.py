"""``recmtl embeddings`` with a run in place of an export."""

from __future__ import annotations

from pathlib import Path

import torch

from recmtl.inference.embeddings import copies_of, write_embeddings
from recmtl.inference.tables import iter_rows
from recmtl.runtime.folders import scratch_folder
from recmtl.training.checkpoint import refuse_damaged
from recmtl.training.manifest import find_damage
from recmtl.training.trained import TrainedRun
from recmtl.training.weights import read_weights, stored_tables


def run_embeddings(run: Path, table: str, out: Path) -> int:
    """Write the rows of all copies of a table of a run's best model; see `recmtl.inference.embeddings`.

    Raises:
        UserError: the run is not whole, or has no such table.
    """
    trained = TrainedRun(run)
    model = trained.make_model()
    files = {bag.name: (bag.name,) for bag in model.embeddings.tables}
    copies = copies_of(stored_tables(model, trained, files), table, str(run))
    refuse_damaged(trained.checkpoint, find_damage(trained.checkpoint))
    with scratch_folder(out) as folder:
        weights = read_weights(trained.checkpoint, model, folder / "tables", only=[copy.key for copy in copies])
        rows = [(copy, iter_rows([torch.from_numpy(weights[copy.key])])) for copy in copies]
        return write_embeddings(rows, run, trained.encoder, out)
