"""Toy data whose encoding grew from that of other toy data, written without `prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from toy import ROW_GROUP, write_toy

from recmtl.encoding.generations import Generations
from recmtl.schema import ENCODER, RECIPE, SPLITS, UNSEEN, VOCABULARIES, Dataset

ROWS = (60, 230)
"""Rows of the tables user and item, which had 50 and 200."""
REUSED = {"user": [7, 31], "item": [5, 11, 199]}
"""Ids that belong to other values than before."""


def write_grown(
    folder: Path,
    before: Path,
    *,
    rows: dict[str, int] | None = None,
    table_rows: tuple[int, int] = ROWS,
    reused: Mapping[str, list[int]] = REUSED,
    seed: int = 1,
) -> Dataset:
    """Write a folder of the next generation: with new ids at the end of the tables, and some that were reused."""
    old = Dataset.load(before)
    new = write_toy(folder, rows, seed=seed, table_rows=table_rows)
    return describe(folder, new, old, Path(before) / ENCODER, reused)


def describe(
    folder: Path, new: Dataset, old: Dataset, encoder: Path, reused: Mapping[str, list[int]], **changes: Any
) -> Dataset:
    """Say in a folder that its encoding is the next generation of `old`."""
    new = replace(new, lineage=(*old.lineage, old.encoding_fingerprint), **changes)
    (folder / ENCODER).mkdir()
    (folder / VOCABULARIES).mkdir()
    (folder / RECIPE).write_text('name = "toy"\n')
    known = {table.name: table for table in old.tables}
    for table in new.tables:
        generations = Generations.first(table.rows)
        if table.name in known:
            assigned = Generations.load(encoder, known[table.name]).assigned
            generations.assigned[: len(assigned)] = assigned
            generations.assigned[len(assigned) :] = new.generation
            generations.assigned[reused.get(table.name, [])] = new.generation
        generations.save(folder / ENCODER, table.name)
    new.save(folder)
    return new


def write_unseen(folder: Path, grown: Path, before: Path, reused: Mapping[str, list[int]] = REUSED) -> Dataset:
    """Write the rows of a grown folder as the encoding before it reads them: later ids are 1."""
    old, new = Dataset.load(before), Dataset.load(grown)
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        for path in new.files(grown, split):
            table = pq.read_table(path)
            for feature in ("user", "item", "previous"):
                name = {"previous": "item"}.get(feature, feature)
                ids = table.column(feature).to_numpy()
                later = (ids >= old.table(name).rows) | np.isin(ids, reused.get(name, []))
                place = table.schema.get_field_index(feature)
                table = table.set_column(place, feature, pa.array(np.where(later, UNSEEN, ids), pa.int32()))
            pq.write_table(table, folder / split / path.name, row_group_size=ROW_GROUP)
    dataset = replace(new, tables=old.tables, lineage=old.lineage)
    dataset.save(folder)
    return dataset
