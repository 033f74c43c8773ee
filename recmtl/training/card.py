"""The model card of an export: what the model is, what it was trained on, how good it is and what it is for."""

from __future__ import annotations

from datetime import datetime, timezone
from itertools import pairwise
from typing import Any

from recmtl.inference.signature import Signature
from recmtl.schema import SPLITS, Dataset, Task
from recmtl.training.trained import TrainedRun

CALIBRATION = {"calibration": "calibration", "positive rate": "base_rate"}
BIAS = {"bias": "bias", "mean label": "mean_label"}
WITH_ERROR = ("auc", "mae", "rmse")
"""Metrics that are shown with their standard errors."""


def model_card(trained: TrainedRun, signature: Signature, results: dict[str, Any] | None) -> str:
    """The card as Markdown.

    Args:
        trained: the run.
        signature: of the export.
        results: of the run; None: it is not finished.
    """
    dataset, recipe = trained.dataset, trained.recipe
    rows = ", ".join(f"{dataset.rows.get(split, 0):,} {split}" for split in SPLITS)
    copies = sum(table.rows * table.dim for table in signature.tables)
    parts = [
        f"# {signature.name}: {signature.model}",
        f"Predicts {', '.join(signature.tasks)} from {len(dataset.features)} features: "
        f"{_predictions(trained.tasks)} for every row of the recipe's query.",
        "## Use",
        "It ranks or filters candidates for the users and on the logs that it was trained for. Its probabilities are "
        "those of the training logs' population: on another one, or after what is shown has changed, they are not "
        "calibrated. It was tested on the rows described below and on no others.",
        "```python\n"
        "import recmtl\n\n"
        'model = recmtl.load("THIS FOLDER")\n'
        f"model.predict({{{', '.join(f'{name!r}: [...]' for name in list(trained.encoder.schema.names)[:3])}, ...}})\n"
        "```",
        "## Data",
        f"- Recipe `{recipe.name}`{f': {recipe.description}' if recipe.description else ''}",
        f"- Raw files: {_files(dataset)}",
        f"- Rows: {rows}; split: {_split(dataset.split)}",
        f"- Fingerprints: encoding `{dataset.encoding_fingerprint}`, data `{dataset.data_fingerprint}`",
        "## Tasks",
        *_tasks(trained.tasks, results),
        "## Model",
        f"- `{signature.model}`, checkpoint {trained.checkpoint.name}; sizes in `config.toml`",
        f"- {copies:,} numbers in {len(signature.tables)} embedding tables, stored as {signature.dtype}",
        f"- Exported {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC with "
        + ", ".join(f"{name} {version}" for name, version in signature.versions.items()),
        "## Columns that it reads",
        "| column | type |\n|---|---|\n"
        + "\n".join(f"| `{field.name}` | {field.type} |" for field in trained.encoder.schema),
    ]
    return _joined(parts)


def _files(dataset: Dataset) -> str:
    counts = {source: (len(files), sum(files.values())) for source, files in dataset.sources.items() if files}
    return "; ".join(f"{source}: {files:,} files, {rows:,} rows" for source, (files, rows) in counts.items()) or "none"


def _split(rule: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in rule.items() if value not in (None, "", [])) or "not known"


def _predictions(tasks: tuple[Task, ...]) -> str:
    """What the model gives for each task."""
    binary = [task.name for task in tasks if task.kind == "binary"]
    numbers = [task.name for task in tasks if task.kind != "binary"]
    if not numbers:
        return "a probability of each"
    parts = [f"a probability of {', '.join(binary)}"] if binary else []
    return " and ".join([*parts, f"a number, in the label's unit, of {', '.join(numbers)}"])


def _tasks(tasks: tuple[Task, ...], results: dict[str, Any] | None) -> list[str]:
    """A table of the binary tasks and one of the others, with what they show."""
    test = (results or {}).get("test") or {}
    parts = []
    if binary := [task.name for task in tasks if task.kind == "binary"]:
        parts += [
            _table({"AUC": "auc", "log loss": "logloss", **CALIBRATION}, binary, test),
            "AUC ± its standard error, log loss and calibration (predicted over observed positives) on the test rows "
            "that have a label. `metrics.json` has all metrics.",
        ]
    if numbers := [task.name for task in tasks if task.kind != "binary"]:
        parts += [
            _table({"MAE": "mae", "RMSE": "rmse", **BIAS}, numbers, test),
            "MAE and RMSE ± their standard errors, in the label's unit, and bias (mean prediction over mean label) on "
            "the test rows that have a label.",
        ]
    return parts


def _table(columns: dict[str, str], tasks: list[str], test: dict[str, Any]) -> str:
    """A line a task, with the metrics of the columns by their titles."""
    lines = [f"| task | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for task in tasks:
        measured = test.get(task)
        if measured is None:
            lines.append(f"| {task} | not measured |{' |' * (len(columns) - 1)}")
            continue
        cells = [_cell(measured, metric) for metric in columns.values()]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(measured: dict[str, Any], metric: str) -> str:
    value, error = measured.get(metric), measured.get(f"{metric}_se") if metric in WITH_ERROR else None
    return "n/a" if value is None else f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _joined(parts: list[str]) -> str:
    """Paragraphs, with the items of one list on lines that follow each other."""
    text = parts[0]
    for before, part in pairwise(parts):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text + "\n"
