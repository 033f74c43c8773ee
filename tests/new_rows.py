"""The rows that `recmtl predict` scores."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from recmtl.data.prepare.new_rows import open_new_rows
from recmtl.data.recipe import Recipe
from recmtl.encoding.encoder import Encoder
from recmtl.runtime.progress import Progress
from recmtl.schema import SourceColumns


def read_new_rows(
    recipe: Recipe,
    raw: Path,
    encoder: Encoder,
    known: SourceColumns,
    spill: Path,
    *,
    keep: tuple[str, ...] | None = None,
    memory_limit: str = "1GB",
    threads: int = 1,
) -> pa.Table:
    """All of them; see `open_new_rows`."""
    with (
        Progress(enabled=False, timed=False) as progress,
        open_new_rows(
            *(recipe, raw, encoder, known),
            keep=keep,
            since=None,
            memory_limit=memory_limit,
            threads=threads,
            spill=spill,
            progress=progress,
        ) as found,
    ):
        return pa.Table.from_batches(list(found.batches), found.schema)
