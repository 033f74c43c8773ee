"""The model card of an export: what the model is, what it was trained on, how good it is and what it is for."""

from __future__ import annotations

from datetime import datetime, timezone
from itertools import pairwise
from typing import Any

from recmtl.inference.signature import Signature
from recmtl.schema import SPLITS, Dataset
from recmtl.training.trained import TrainedRun


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
        f"Predicts {', '.join(signature.tasks)} from {len(dataset.features)} features: a probability of each for every "
        "row of the recipe's query.",
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
        _tasks(trained, results),
        "AUC ± its standard error, log loss and calibration (predicted over observed positives) on the test rows. "
        "`metrics.json` has all metrics.",
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


def _tasks(trained: TrainedRun, results: dict[str, Any] | None) -> str:
    lines = ["| task | AUC | log loss | calibration | positive rate |", "|---|---|---|---|---|"]
    for task in trained.tasks:
        measured = ((results or {}).get("test") or {}).get(task.name)
        if measured is None:
            lines.append(f"| {task.name} | not measured | | | |")
            continue
        auc, error = measured.get("auc"), measured.get("auc_se")
        shown = "n/a" if auc is None else f"{auc:.4f}" + ("" if error is None else f" ± {error:.4f}")
        rest = (measured.get(name) for name in ("logloss", "calibration", "base_rate"))
        cells = ("n/a" if value is None else f"{value:.4f}" for value in rest)
        lines.append(f"| {task.name} | {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _joined(parts: list[str]) -> str:
    """Paragraphs, with the items of one list on lines that follow each other."""
    text = parts[0]
    for before, part in pairwise(parts):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text + "\n"
