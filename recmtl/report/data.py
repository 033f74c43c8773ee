"""What ``dataset.json`` in a run's folder says of the data, as far as it says it."""

from __future__ import annotations

from dataclasses import dataclass
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
class Data:
    """The data of a run."""

    rows: dict[str, int]
    """By split."""
    base_rates: dict[str, Shares]
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
                base_rates={task["name"]: _shares(task, "base_rate") for task in fields["tasks"]},
                tables=[TableSize(t["name"], int(t["rows"]), t.get("dim")) for t in fields["tables"]],
                features=[_feature(fields_of) for fields_of in fields["features"]],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); train again") from None


def _feature(fields: dict[str, Any]) -> FeatureShares:
    shares = _shares(fields, "missing"), _shares(fields, "unseen")
    return FeatureShares(fields["name"], fields["kind"], fields.get("table") or "", *shares)


def _shares(fields: dict[str, Any], name: str) -> Shares:
    return {split: float(share) for split, share in (fields.get(name) or {}).items() if share is not None}
