"""The weights of a checkpoint in one process, without process group, sharding or optimisers.

Tables go to files that are mapped into memory: one that is larger than the memory can be read too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from recmtl.inference.signature import StoredTable
from recmtl.models.embeddings import table_name
from recmtl.models.ranking_model import RankingModel
from recmtl.runtime.storage import local_path, make_folder
from recmtl.training.storage import NETWORK_KEY, SafePlanner, SafeReader, weight_keys
from recmtl.training.trained import TrainedRun


def read_weights(
    checkpoint: Path, model: RankingModel, folder: Path, only: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Fill a model's networks from a checkpoint; returns its tables [R, D] by name, in the type they were trained.

    Args:
        checkpoint: of a run, whole.
        model: its tables are not touched.
        folder: for the files; made here.
        only: names of the tables to read; None: all.
    """
    reader = SafeReader(checkpoint)
    described = reader.read_metadata().state_dict_metadata
    make_folder(folder)
    tables: dict[str, np.ndarray] = {}
    state: dict[str, Tensor] = {
        NETWORK_KEY.format(part) + name: value
        for part, network in model.networks.items()
        for name, value in network.state_dict().items()
    }
    keys = weight_keys(described)
    for number, bag in enumerate(model.embeddings.tables):
        if only is not None and bag.name not in only:
            continue
        key = keys[bag.name]
        stored = described[key]
        assert isinstance(stored, TensorStorageMetadata)
        kind = np.dtype(str(stored.properties.dtype).removeprefix("torch."))
        tables[bag.name] = np.memmap(local_path(folder / f"{number}"), kind, "w+", shape=tuple(stored.size))
        state[key] = torch.from_numpy(tables[bag.name])
    dcp.load(dict(state), storage_reader=reader, planner=SafePlanner(), no_dist=True)
    return tables


def stored_tables(model: RankingModel, trained: TrainedRun, files: Mapping[str, tuple[str, ...]]) -> list[StoredTable]:
    """The copies of all tables of a model, with the files of each."""
    sets = model.dense.table_sets(trained.config.model, trained.tasks)
    dims = {bag.name: bag.embedding_dim for bag in model.embeddings.tables}
    found = []
    for table in trained.dataset.tables:
        for table_set in sets:
            key = table_name(table.name, table_set, sets)
            copy = "" if len(sets) == 1 else table_set
            found.append(StoredTable(key, table.name, copy, table.rows, dims[key], files[key]))
    return found
