"""``recmtl export``: a run's best model as a folder that needs nothing else to predict.

    checkpoint ──▶ tables/*.npy            dense network ──torch.export──▶ model.pt2
    run        ──▶ encoder/, vocab/, recipe.toml, config.toml, metrics.json, README.md, signature.json, manifest.json

Tables lie beside the graph, not in it: mapped into memory they take no time to load, and processes share them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recmtl.config import to_toml
from recmtl.errors import UserError
from recmtl.features import FeatureKinds, is_list
from recmtl.inference.archive import this_machine
from recmtl.inference.delta import check_parent, write_delta
from recmtl.inference.exported import ROWS_AT_ONCE, ExportedModel, to_tensors
from recmtl.inference.inputs import Inputs
from recmtl.inference.manifest import write_manifest
from recmtl.inference.signature import (
    CARD,
    COMPILED,
    CONFIG,
    MANIFEST,
    METRICS,
    MODEL,
    SIGNATURE,
    TABLES,
    Signature,
)
from recmtl.inference.tables import open_table, write_table
from recmtl.runtime.folders import complete_or_absent, link_folder
from recmtl.runtime.progress import Progress
from recmtl.runtime.storage import local_path, make_folder, write_json, write_whole
from recmtl.runtime.versions import versions
from recmtl.schema import ENCODER, RECIPE, VOCABULARIES, Dataset
from recmtl.training.card import model_card
from recmtl.training.checkpoint import refuse_damaged
from recmtl.training.graph import ScoringGraph
from recmtl.training.manifest import find_damage
from recmtl.training.outputs import output_columns
from recmtl.training.trained import TrainedRun
from recmtl.training.weights import read_weights, stored_tables

TRACED_ROWS = 7
"""Rows of the example that is traced; any number but 0 and 1, for which PyTorch would make graphs of their own."""
CHECKED_ROWS = (0, 1, 2, 64, ROWS_AT_ONCE + 3)
TOLERANCE = 1e-6


def export_run(
    run: Path, out: Path, dtype: str = "float32", *, compiled: bool = False, delta_from: Path | None = None
) -> Signature:
    """Write an export.

    Args:
        run: the run folder.
        out: folder to write, complete or absent.
        dtype: of the tables: float32, float16 or int8.
        compiled: also compile the graph to machine code, for machines like this one.
        delta_from: an earlier export; what is written is then not the export, but what makes it of that one.

    Raises:
        UserError: the run is not whole, `out` cannot be written, the graph cannot be compiled or scores otherwise then,
            or the earlier export is damaged or has tables of another type.
    """
    if delta_from is not None:
        check_parent(delta_from, dtype)
    trained = TrainedRun(run)
    checkpoint = trained.checkpoint
    refuse_damaged(checkpoint, find_damage(checkpoint))
    recipe = trained.recipe
    with complete_or_absent(out, marker=MANIFEST) as work, Progress(timed=False) as progress:
        folder = work / ("data" if delta_from is None else "export")
        make_folder(folder / TABLES)
        model = trained.make_model()
        with progress.stage("writing tables", 2 * len(model.embeddings.tables)) as advance:
            read = read_weights(checkpoint, model, work / "read")
            files = {}
            for done, (key, values) in enumerate(read.items(), 1 + len(read)):
                files[key] = write_table(values, folder / TABLES, key, dtype)
                advance(done)
        signature = Signature(
            name=recipe.name,
            model=trained.config.model.name,
            dtype=dtype,
            tasks=tuple(task.name for task in trained.tasks),
            outputs=tuple(output_columns(model)),
            tables=tuple(stored_tables(model, trained, files)),
            encoding_fingerprint=trained.dataset.encoding_fingerprint,
            source_columns=trained.dataset.source_columns,
            versions=versions(),
            compiled_for=this_machine() if compiled else "",
        )
        tables = {table.key: open_table(folder, table, dtype) for table in signature.tables}
        with progress.stage("tracing the model", 1):
            graph = ScoringGraph(model, trained.dataset).eval()
            program = trace(graph, trained.dataset, tables)
        if compiled:
            with progress.stage("compiling the model", 1):
                compile_graph(program, folder / COMPILED)
        save_graph(program, folder / MODEL)
        link_folder(run / ENCODER, folder / ENCODER)
        link_folder(run / VOCABULARIES, folder / VOCABULARIES)
        write_whole(folder / RECIPE, recipe.toml)
        write_whole(folder / CONFIG, to_toml(trained.config))
        results = trained.results
        write_json(folder / METRICS, {} if results is None else {key: results[key] for key in ("test", "val")})
        write_json(folder / SIGNATURE, signature.to_json())
        write_whole(folder / CARD, model_card(trained, signature, results))
        write_manifest(folder)
        with progress.stage("checking the export", len(CHECKED_ROWS)):
            found = _largest_difference(ExportedModel(folder), graph, trained.dataset, tables)
        if found > TOLERANCE and compiled and trained.config.training.amp == "bf16":
            raise UserError(
                f"--compile: compiled, the model of {run} scores otherwise by up to {found:.1g}, as its training.amp "
                "is bf16 and compiled code rounds intermediate results otherwise; leave it out"
            )
        if found > TOLERANCE:
            raise RuntimeError(f"the export differs from the model by up to {found:.1g}")
        if results is None:
            progress.note(f"{run}: not finished; this is its best model so far, and {METRICS} is empty")
        if delta_from is not None:
            with progress.stage("comparing the exports", 1):
                write_delta(delta_from, folder, work / "data")
        return signature


def trace(graph: ScoringGraph, dataset: Dataset, tables: dict[str, list[Tensor]]) -> torch.export.ExportedProgram:
    """The graph's operations, for any number of rows and ids."""
    dynamic = torch.export.Dim.DYNAMIC
    ids, numeric, lists = to_tensors(random_inputs(dataset, TRACED_ROWS))
    shapes = (
        {1: dynamic},
        {0: dynamic},
        [(dict.fromkeys(range(ids.dim()), dynamic), {0: dynamic}) for ids, _ in lists],
        {key: [None for _ in parts] for key, parts in tables.items()},
    )
    with torch.no_grad():
        return torch.export.export(graph, (ids, numeric, lists, tables), dynamic_shapes=shapes, strict=False)


def save_graph(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a traced graph as `load_graph` accepts it: without example inputs, which would be pickled, tables among
    them. The program loses them, too.
    """
    program.example_inputs = None
    torch.export.save(program, local_path(path))


def compile_graph(program: torch.export.ExportedProgram, path: Path) -> None:
    """Compile a traced graph with AOTInductor: minutes, and a C++ compiler is needed.

    Raises:
        UserError: it cannot be compiled.
    """
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(local_path(path)))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--compile: PyTorch cannot compile this model here ({reason}); leave it out") from None


def _largest_difference(
    exported: ExportedModel, graph: ScoringGraph, dataset: Dataset, tables: dict[str, list[Tensor]]
) -> float:
    """Between the scores of what was written and of what was meant, on random rows; ∞ where one is no number."""
    largest = 0.0
    for rows in CHECKED_ROWS:
        inputs = random_inputs(dataset, rows)
        with torch.no_grad():
            wanted = torch.cat(graph(*to_tensors(inputs), tables), dim=1).numpy()
        found = exported.score(inputs)
        if found.shape != wanted.shape or not np.isfinite(found - wanted).all():
            return math.inf
        largest = max(largest, float(np.abs(found - wanted).max(initial=0)))
    return largest


def random_inputs(dataset: Dataset, rows: int) -> Inputs:
    """Random ids and numbers; the first row's lists have items, others may be empty."""
    rng = np.random.default_rng(rows)
    sparse = dataset.sparse_features
    limits = {feature.name: dataset.table(str(feature.table)).rows for feature in sparse}
    ids = [rng.integers(0, limits[feature.name], rows) for feature in sparse if not is_list(feature)]
    lists, of_history = [], dict[str, np.ndarray]()
    for feature in sparse:
        if is_list(feature):
            lengths = of_history.get(feature.history)
            if lengths is None:
                lengths = rng.integers(0, 6 if feature.history else 3, rows).astype(np.int32)
                lengths[:1] = 2
            if feature.history:
                lengths[1:2] = 0
                of_history[feature.history] = lengths
            lists.append((rng.integers(0, limits[feature.name], lengths.sum()).astype(np.int32), lengths))
    width = sum(feature.width for feature in dataset.dense_features)
    numeric = rng.normal(size=(rows, width)).astype("f4")
    places = FeatureKinds(dataset.features).sequence_places
    return Inputs(np.array(ids, np.int32).reshape(len(ids), rows), numeric, lists, places)
