"""What ``dataset.json`` in a run's folder says of the data, as far as it says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recmtl.errors import UserError
from recmtl.runtime.storage import exists, read_json

Shares = dict[str, float]
"""A fraction of the rows, by split."""


@dataclass(frozen=True)
class TableSize:
    """An embedding table."""

    name: str
    rows: int
    dim: int | None
    """None: the run's ``embedding.dim``."""


@dataclass(frozen=True)
class FeatureShares:
    """How much of a feature is missing, and how much of it training has not seen."""

    name: str
    kind: str
    table: str
    """Empty for a numeric feature."""
    missing: Shares
    unseen: Shares


@dataclass(frozen=True)
class Labels:
    """What a task's labels are like."""

    rate: Shares
    """Mean label, of a binary task the fraction of positives; no entry for a split without labels."""
    observed: dict[str, int] = field(default_factory=dict)
    """Rows with a label, by split; no entry: all."""
    is_number: bool = False
    """They are not 0 and 1."""
    weighted: bool = False
    """The mean is by the rows' weights, so that it does not tell the number of positives."""


@dataclass(frozen=True)
class Data:
    """The data of a run."""

    rows: dict[str, int]
    """By split."""
    labels: dict[str, Labels]
    """By task."""
    tables: list[TableSize]
    features: list[FeatureShares]

    @staticmethod
    def load(path: Path) -> Data | None:
        """Read a copy of ``dataset.json``; None where there is none.

        Raises:
            UserError: it is damaged.
        """
        if not exists(path):
            return None
        try:
            fields: dict[str, Any] = read_json(path)
            return Data(
                rows={split: int(count) for split, count in fields["rows"].items()},
                labels={task["name"]: _labels(task, bool(fields.get("row_weight"))) for task in fields["tasks"]},
                tables=[TableSize(t["name"], int(t["rows"]), t.get("dim")) for t in fields["tables"]],
                features=[_feature(fields_of) for fields_of in fields["features"]],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); train again") from None


def _labels(task: dict[str, Any], weighted: bool) -> Labels:
    observed = {split: int(count) for split, count in task.get("observed", {}).items()}
    number = task.get("kind", "binary") != "binary"
    return Labels(_shares(task, "base_rate"), observed, number, weighted or bool(task.get("row_weight")))


def _feature(fields: dict[str, Any]) -> FeatureShares:
    shares = _shares(fields, "missing"), _shares(fields, "unseen")
    return FeatureShares(fields["name"], fields["kind"], fields.get("table") or "", *shares)


def _shares(fields: dict[str, Any], name: str) -> Shares:
    return {split: float(share) for split, share in (fields.get(name) or {}).items() if share is not None}
