"""Which sources are dealt into partitions, which are read whole by every task, and what one task reads of the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from recmtl.data.prepare.footers import read_footer
from recmtl.data.prepare.sources import FILE_ROW_NUMBER, FileView
from recmtl.data.recipe import Recipe, Source
from recmtl.errors import UserError
from recmtl.runtime.storage import file_size

WHOLE_BYTES = 2**30
"""Size of the files of a source, at most, that every task reads whole."""
PIECE_ROWS = 2**20
"""Raw rows that a task reads, at most about."""


@dataclass(frozen=True)
class Piece:
    """Rows of some files of a source, or of a part of one."""

    source: str
    files: tuple[Path, ...]
    sql: str
    """Query for its rows."""


def partitioned_sources(
    recipe: Recipe, files: Mapping[str, list[Path]], types: Mapping[str, Mapping[str, str]]
) -> list[Source]:
    """The sources of files whose rows are dealt into partitions.

    Args:
        recipe: declares them.
        files: of every source that has some.
        types: of the columns of every source.

    Raises:
        UserError: a source is neither partitioned nor small.
    """
    found = []
    for source in recipe.sources:
        if source.sql:
            continue
        if files[source.name] and source.partition_by is not None and source.partition_by in types[source.name]:
            found.append(source)
        elif (size := sum(map(file_size, files[source.name]))) > WHOLE_BYTES:
            reason = "has no partition_by" if source.partition_by is None else f"has no column {source.partition_by!r}"
            raise UserError(
                f"{recipe.origin}: [sources] {source.name!r}: {reason}, and at {size / 2**30:,.1f} GiB it is too large "
                f"for every task of Spark to read it whole (at most {WHOLE_BYTES / 2**30:g} GiB); name the column "
                "whose equal rows the query needs to see at once, 'file_row_number' if it looks at every row by itself"
            )
    return found


def cut(source: Source, files: list[Path], view: FileView) -> Iterator[Piece]:
    """Cut a source into pieces: whole row groups, and several files where they are small."""
    some: list[Path] = []
    rows = 0
    for path in files:
        footer = read_footer(path)
        if some and rows + footer.num_rows > PIECE_ROWS:
            yield Piece(source.name, tuple(some), view.sql(frozenset(some)))
            some, rows = [], 0
        if footer.num_rows <= PIECE_ROWS:
            some.append(path)
            rows += footer.num_rows
            continue
        groups = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        for first, last in row_ranges(groups):
            within = view.where(f"{FILE_ROW_NUMBER} >= {first} and {FILE_ROW_NUMBER} < {last}")
            yield Piece(source.name, (path,), within.sql(frozenset([path])))
    if some:
        yield Piece(source.name, tuple(some), view.sql(frozenset(some)))


def row_ranges(groups: list[int]) -> Iterator[tuple[int, int]]:
    """The first row and the row after the last of pieces that consist of whole row groups, given their rows."""
    first = last = 0
    for rows in groups:
        if last > first and last + rows - first > PIECE_ROWS:
            yield first, last
            first = last
        last += rows
    if last > first:
        yield first, last
