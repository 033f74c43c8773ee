"""What the footers of a split's files tell before a row is decoded; none is kept."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.errors import UserError
from recmtl.runtime.storage import open_source

THREADS = 8
"""That read footers: where the disk is another machine's, most of the time goes by waiting for it."""


RowGroup = tuple[int, int, int]
"""Rows of a row group, and where in the file the columns that will be read begin and end."""


class FooterChecks:
    """Checks files against what the dataset says of their columns.

    Args:
        types: Arrow types of the columns that will be read, by name.
        limits: the least and the greatest value that columns may hold, by name.
        partial: columns that may hold nulls.
    """

    def __init__(
        self, types: Mapping[str, pa.DataType], limits: Mapping[str, tuple[float, float]], partial: Iterable[str]
    ) -> None:
        self._types, self._limits, self._partial = types, limits, set(partial)

    def row_groups(self, paths: Sequence[Path]) -> list[list[RowGroup]]:
        """The row groups of files that are as they should be, as far as their footers tell.

        Raises:
            UserError: a file is missing or cut short, lacks a column, or has one of another type or with values out of
                range; the first such file is named.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self._check_file, paths))

    def _check_file(self, path: Path) -> list[RowGroup]:
        try:
            file = pq.ParquetFile(open_source(path))
        except (OSError, pa.ArrowException) as error:
            raise damaged(path, error) from None
        with file:
            present = {field.name: field.type for field in file.schema_arrow}
            for column, wanted in self._types.items():
                if column not in present:
                    raise UserError(f"{path}: no column '{column}', which dataset.json names; prepare the data again")
                if not _is_type(present[column], wanted):
                    kinds = f"{present[column]}, not {wanted}"
                    raise UserError(f"{path}: column '{column}' is {kinds}; prepare the data again")
            self._check_statistics(path, file.metadata)
            return row_groups(file.metadata, self._types)

    def _check_statistics(self, path: Path, metadata: pq.FileMetaData) -> None:
        """Find nulls and values out of range, before a run starts; decoding looks at every value."""
        columns: list[tuple[int, str, bool]] = []
        """Number, name and whether it is no list, of columns that will be read."""
        for group in range(metadata.num_row_groups):
            described = metadata.row_group(group)
            if not group:
                # `metadata.schema` has the names too, but with it a footer stays until the garbage collector comes by.
                paths = [described.column(i).path_in_schema for i in range(described.num_columns)]
                names = [path.split(".")[0] for path in paths]
                columns = [(i, name, name == paths[i]) for i, name in enumerate(names) if name in self._types]
            for i, name, is_flat in columns:
                found = described.column(i).statistics
                if found is None:
                    continue
                if is_flat and found.null_count and name not in self._partial:
                    raise UserError(f"{path}: column '{name}' holds nulls; prepare the data again")
                if name not in self._limits or not found.has_min_max:
                    continue
                low, high = self._limits[name]
                least, greatest = found.min, found.max
                if least < low or greatest > high:
                    bad = least if least < low else greatest
                    raise UserError(
                        f"{path}: column '{name}' holds {bad}, outside {low} to {high}; prepare the data again"
                    )


def row_groups(metadata: pq.FileMetaData, columns: Container[str]) -> list[RowGroup]:
    """Rows of every row group, and where these columns of it begin and end."""
    found = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(place) for place in range(group.num_columns)]
        bounds = [_bounds(chunk) for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]
        found.append((group.num_rows, min((b[0] for b in bounds), default=0), max((b[1] for b in bounds), default=0)))
    return found


def _bounds(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    return start, start + chunk.total_compressed_size


def row_counts(metadata: pq.FileMetaData) -> list[int]:
    """The rows of every row group."""
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def damaged(path: Path, error: Exception) -> UserError:
    """What to say of a file that is not readable."""
    reason = str(error).splitlines()[0]
    return UserError(
        f"{path}: not readable as Parquet ({reason}); the file is missing or cut short, prepare the data again"
    )


def _is_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column's type is the wanted one, whatever the items of a list are called."""
    if not pa.types.is_nested(wanted):
        return found == wanted
    sizes = (getattr(kind, "list_size", None) for kind in (found, wanted))
    return found.id == wanted.id and found.value_type == wanted.value_type and len(set(sizes)) == 1
