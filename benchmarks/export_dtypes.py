"""What the type of an export's tables costs: size, AUC, log loss and calibration on the test rows.

    python benchmarks/export_dtypes.py RUN DATA

Exports the run with tables in float32, float16 and int8 and scores the prepared test rows with each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from common import RESULTS, machine, markdown_table, write_results
from torchmetrics.functional.classification import binary_auroc

from recmtl.inference.exported import ExportedModel
from recmtl.inference.inputs import Collator
from recmtl.inference.signature import TABLES
from recmtl.inference.tables import DTYPES
from recmtl.schema import Dataset, label_column
from recmtl.training.export import export_run


@dataclass
class Options:
    """What to export."""

    run: tyro.conf.Positional[Path]
    """A finished run."""
    data: tyro.conf.Positional[Path]
    """Its prepared folder."""
    out: Path = RESULTS
    """Folder for the results."""


def scored(model: ExportedModel, data: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and labels [n, T] of the test rows, row group by row group."""
    collator = Collator(model.encoder.features)
    for path in Dataset.load(data).files(data, "test"):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                labels = np.stack([columns[label_column(task)].to_numpy() for task in model.tasks], axis=1)
                yield model.score(collator.collate(columns))[:, : len(model.tasks)], labels


def measure(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """AUC, log loss in nats, and predicted over observed positives."""
    p, y = probabilities.astype(np.float64), labels.astype(bool)
    loss = -np.where(y, np.log(p), np.log1p(-p)).mean()
    auc = binary_auroc(torch.from_numpy(p), torch.from_numpy(y).long())
    return {"auc": auc.item(), "logloss": float(loss), "calibration": float(p.sum() / y.sum())}


def main(options: Options) -> None:
    """Export, score, print and write."""
    place = machine()
    lines: list[list[Any]] = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            export = Path(folder) / dtype
            signature = export_run(options.run, export, dtype)
            size = sum(path.stat().st_size for path in (export / TABLES).iterdir())
            p, y = map(np.concatenate, zip(*scored(ExportedModel(export), options.data), strict=True))
            metrics = {task: measure(p[:, place], y[:, place]) for place, task in enumerate(signature.tasks)}
            results[dtype] = {"table_bytes": size, "test": metrics}
            full = results["float32"]
            for task, values in metrics.items():
                shown = [f"{values[name]:.5f}" for name in ("auc", "logloss", "calibration")]
                change = [f"{values[name] - full['test'][task][name]:+.6f}" for name in ("auc", "logloss")]
                share = f"{size / full['table_bytes']:.3f}"
                lines.append([dtype, size / 1e6, share, task, *shown, *change])
    header = ("tables", "MB", "of float32", "task", "AUC", "log loss", "calibration", "AUC − float32's", "log loss − …")
    body = markdown_table(header, lines)
    name = f"{signature.name}-{signature.model}"
    write_results(options.out, "export_dtypes", name, {"machine": place, **results}, body)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
