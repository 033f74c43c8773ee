"""What an export says of itself: ``signature.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from recmtl.errors import UserError
from recmtl.runtime.storage import is_file, read_json
from recmtl.schema import SourceColumns

FORMAT = 1
SIGNATURE, MODEL, COMPILED, TABLES = "signature.json", "model.pt2", "compiled.pt2", "tables"
CONFIG, METRICS, CARD, MANIFEST = "config.toml", "metrics.json", "README.md", "manifest.json"
DELTA = "delta.json"
"""What tells a delta of an export (`recmtl.inference.delta`) from an export."""


@dataclass(frozen=True)
class StoredTable:
    """A copy of an embedding table, in files that are mapped into memory."""

    key: str
    """Its name in the graph."""
    table: str
    """The recipe's name of it."""
    copy: str
    """Which copy it is: a task's own, or the shared one; empty where there is one only."""
    rows: int
    dim: int
    files: tuple[str, ...]
    """In the folder `TABLES`: rows, and of an int8 table also scale and offset of every row."""


@dataclass(frozen=True)
class Signature:
    """What goes into an export's model and comes out of it."""

    name: str
    """Of the recipe."""
    model: str
    """Of the model, such as mmoe."""
    dtype: str
    """Of the tables: float32, float16 or int8."""
    tasks: tuple[str, ...]
    outputs: tuple[str, ...]
    """Columns of predictions: one a task, then of a model that composes probabilities the conditional ones."""
    tables: tuple[StoredTable, ...]
    encoding_fingerprint: str
    """Of the prepared data that the model was trained on."""
    source_columns: SourceColumns
    """SQL types of the raw files' columns that the recipe's query read."""
    versions: dict[str, str]
    compiled_for: str = ""
    """What machines `COMPILED` is for (`recmtl.inference.archive.this_machine`); empty: it is not there."""

    def to_json(self) -> dict[str, Any]:
        """All fields and the format's version."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def load(cls, folder: Path) -> Signature:
        """Read it from an export.

        Raises:
            UserError: it is missing, damaged or of another version.
        """
        path = folder / SIGNATURE
        try:
            values = read_json(path)
            if values["format"] != FORMAT:
                raise UserError(f"{path}: written by another version of recmtl; export the run again")
            found = {slot.name: values[slot.name] for slot in fields(cls)}
            found["tables"] = tuple(StoredTable(**{**t, "files": tuple(t["files"])}) for t in found["tables"])
            for name in ("tasks", "outputs"):
                found[name] = tuple(found[name])
            return cls(**found)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); export the run again") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); export the run again") from None


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, or a delta of one, and no run folder."""
    return is_file(folder / SIGNATURE) or is_file(folder / MANIFEST)
