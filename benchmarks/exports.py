"""An export in MerRec's shape with a given number of embedding rows, without events and training behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from workload import TEXTS, merrec_shaped, merrec_tables, table_sizes, values_of

from recmtl.config import load_config
from recmtl.data.recipe import load_recipe
from recmtl.encoding.encoder import Encoder
from recmtl.encoding.values import keys
from recmtl.encoding.vocabulary import Vocabulary
from recmtl.inference.archive import this_machine
from recmtl.inference.manifest import write_manifest
from recmtl.inference.signature import COMPILED, MODEL, SIGNATURE, TABLES, Signature, StoredTable
from recmtl.inference.tables import open_table, write_table
from recmtl.models.ranking_model import RankingModel
from recmtl.runtime.storage import write_json, write_whole
from recmtl.runtime.versions import versions
from recmtl.schema import ENCODER, FIRST, RECIPE, Dataset
from recmtl.training.export import compile_graph, save_graph, trace
from recmtl.training.graph import ScoringGraph
from recmtl.training.outputs import output_columns

DIM = 32
INIT_STD = 0.1
"""Of the embeddings: probabilities differ from row to row, as a trained model's do."""


@dataclass(frozen=True)
class Export:
    """What was written."""

    dataset: Dataset
    graph: ScoringGraph
    tables: dict[str, list[torch.Tensor]]


def write_export(folder: Path, preset: str, embedding_rows: int, seed: int = 0, *, compiled: bool = False) -> Export:
    """Write an export of a preset with random weights, complete with vocabularies.

    Args:
        folder: to be made.
        preset: whose network it has, with dimension 32 and float32 tables.
        embedding_rows: rows of all tables together, as `merrec_shaped` divides them.
        seed: of the weights.
        compiled: also compile the graph to machine code, as `recmtl export --compile` does.
    """
    dataset = merrec_shaped(table_sizes(merrec_tables(), embedding_rows), 0)
    kinds = {table.name: "VARCHAR" if table.name in TEXTS else "BIGINT" for table in dataset.tables}
    dataset = replace(
        dataset,
        tables=tuple(replace(table, value_type=kinds[table.name]) for table in dataset.tables),
        features=tuple(replace(feature, column=feature.name) for feature in dataset.features),
    )
    config = load_config(preset)
    config.embedding.dim = DIM
    torch.manual_seed(seed)
    model = RankingModel.from_config(config, dataset, dataset.tasks)
    rng = np.random.default_rng(seed)
    (folder / TABLES).mkdir(parents=True)
    stored = []
    for table in dataset.tables:
        weights = INIT_STD * rng.standard_normal((table.rows, DIM), np.float32)
        files = write_table(weights, folder / TABLES, table.name, "float32")
        stored.append(StoredTable(table.name, table.name, "", table.rows, DIM, files))
    tables = {table.key: open_table(folder, table, "float32") for table in stored}
    graph = ScoringGraph(model, dataset).eval()
    program = trace(graph, dataset, tables)
    if compiled:
        compile_graph(program, folder / COMPILED)
    save_graph(program, folder / MODEL)
    _encoder(dataset).save(folder / ENCODER)
    signature = Signature(
        name="merrec",
        model=config.model.name,
        dtype="float32",
        tasks=tuple(task.name for task in dataset.tasks),
        outputs=tuple(output_columns(model)),
        tables=tuple(stored),
        encoding_fingerprint=dataset.encoding_fingerprint,
        source_columns={},
        versions=versions(),
        compiled_for=this_machine() if compiled else "",
    )
    write_json(folder / SIGNATURE, signature.to_json())
    write_whole(folder / RECIPE, load_recipe("merrec").toml)
    write_manifest(folder)
    return Export(dataset, graph, tables)


def _encoder(dataset: Dataset) -> Encoder:
    lookups = {}
    for table in dataset.tables:
        ids = np.arange(FIRST, table.rows, dtype=np.int32)
        values = values_of(table.name, ids)
        found = keys(values.cast(pa.large_string()) if table.name in TEXTS else values)
        order = np.argsort(found)
        lookups[table.name] = Vocabulary(found[order], ids[order])
    schema = pa.schema([(f.name, pa.string() if str(f.table) in TEXTS else pa.int64()) for f in dataset.features])
    return Encoder(dataset.features, dataset.tables, lookups, schema)
