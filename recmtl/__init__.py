"""Multi-task recommender on TorchRec: trained from event logs in Parquet, exported, served.

``recmtl.load(EXPORT)`` opens an exported model; everything else is the command line's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recmtl.inference.exported import ExportedModel

__version__ = "0.1.0"


def load(export: str | Path) -> ExportedModel:
    """Open an exported model.

    Args:
        export: a folder of `recmtl export`, on this machine or in an object store, such as ``s3://bucket/export``.

    Raises:
        recmtl.errors.UserError: a file in it is missing or damaged; names it.
    """
    from recmtl.inference.exported import ExportedModel  # not before: it imports PyTorch
    from recmtl.runtime.storage import parse_path

    return ExportedModel(export if isinstance(export, Path) else parse_path(export))


__all__ = ["__version__", "load"]
