"""Which generation of an encoding assigned each id of a table, and which saw it last.

`recmtl prepare --extend` makes a new generation of an encoding: values keep their ids, new ones get others, the id of
a value that was not seen for long may become that of a new one. So an id means one value within a generation, and a
model of generation g reads an id that a later one assigned as an unseen value.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recmtl.errors import UserError
from recmtl.runtime.storage import is_file, local_path, open_write
from recmtl.schema import ENCODER, Dataset, Table


@dataclass
class Generations:
    """Of one table's ids."""

    assigned: np.ndarray
    """int32 [rows]: the generation that gave the id its value; 0 for `MISSING` and `UNSEEN`."""
    seen: np.ndarray
    """int32 [rows]: the latest generation whose training rows had the value."""

    @classmethod
    def first(cls, rows: int) -> Generations:
        """Of data that extend no others."""
        return cls(np.zeros(rows, np.int32), np.zeros(rows, np.int32))

    def save(self, encoder: Path, table: str) -> None:
        """Write ``TABLE.assigned.npy`` and ``TABLE.seen.npy`` into an encoder's folder."""
        for part in ("assigned", "seen"):
            with open_write(_file(encoder, table, part)) as file:
                np.save(file, getattr(self, part))

    @classmethod
    def load(cls, encoder: Path, table: Table) -> Generations:
        """Read what `save` wrote; where it wrote nothing, all ids are of the first generation.

        Raises:
            UserError: a file is missing or damaged.
        """
        paths = [_file(encoder, table.name, part) for part in ("assigned", "seen")]
        if not any(map(is_file, paths)):
            return cls.first(table.rows)
        try:
            assigned, seen = (np.load(local_path(path), mmap_mode="r") for path in paths)
        except (OSError, ValueError) as error:
            raise UserError(f"{encoder}: the generations of table {table.name!r} cannot be read ({error})") from None
        if len(assigned) != table.rows or len(seen) != table.rows:
            raise UserError(f"{encoder}: the generations of table {table.name!r} are not those of its {table.rows} ids")
        return cls(assigned, seen)


def later_ids(data: Path, dataset: Dataset, before: Dataset) -> dict[str, np.ndarray]:
    """The ids that mean nothing, or something else, in the encoding that some data grew from.

    Args:
        data: the prepared folder.
        dataset: what it holds.
        before: of an encoding in its lineage.

    Returns:
        By table of both encodings: bool [rows], whether a later generation gave the id its value. No entry where no id
        is such.

    Raises:
        UserError: a file is missing or damaged.
    """
    generation = dataset.generation_of(before.encoding_fingerprint)
    if generation == dataset.generation:
        return {}
    rows = {table.name: table.rows for table in before.tables}
    found = {}
    for table in dataset.tables:
        if table.name not in rows:
            continue
        later = Generations.load(data / ENCODER, table).assigned > generation
        later[rows[table.name] :] = True
        if later.any():
            found[table.name] = later
    return found


def _file(encoder: Path, table: str, part: str) -> Path:
    return encoder / f"{table}.{part}.npy"
