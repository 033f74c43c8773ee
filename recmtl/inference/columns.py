"""What callers give as columns: tables, or lists by name."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import pyarrow as pa

from recmtl.errors import UserError


def as_arrays(columns: pa.Table | pa.RecordBatch | Mapping[str, Any], schema: pa.Schema) -> dict[str, pa.Array]:
    """The columns of a schema as Arrow arrays of one length.

    Args:
        columns: a table, or lists, NumPy or Arrow arrays by name; pandas' data frames are such mappings too.
        schema: names, and the types that values get where they are Python's and fit.

    Raises:
        UserError: a column is absent, its values have no type in common, or the lengths differ.
    """
    if isinstance(columns, pa.Table | pa.RecordBatch):
        names = columns.schema.names
    elif hasattr(columns, "keys"):
        names = list(columns.keys())
    else:
        raise UserError(f"{type(columns).__name__} in place of columns; give a table, or lists by name")
    if absent := [name for name in schema.names if name not in names]:
        raise UserError(f"no column {absent[0]!r}; the model needs {', '.join(schema.names)}")
    if twice := [name for name in schema.names if names.count(name) > 1]:
        raise UserError(f"column {twice[0]!r} is there {names.count(twice[0])} times; give one")
    found = {field.name: as_array(columns[field.name], field) for field in schema}
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        first, rows = next(iter(lengths.items()))
        name, other = next((name, count) for name, count in lengths.items() if count != rows)
        raise UserError(f"column {name!r} has {other} rows, and {first!r} has {rows}")
    return found


def as_array(values: Any, field: pa.Field) -> pa.Array:
    """One column of `as_arrays`. Raises as that does."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, str | bytes | Mapping | Set) or not hasattr(values, "__len__"):
        raise UserError(f"column {field.name!r} is of type {type(values).__name__}; give a list, a value for each row")
    try:
        # By itself first: cast to the column's type, True would be 1 and 7.0 be 7 before anything could tell.
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    try:
        return pa.array(values, field.type, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"column {field.name!r}: {str(error).splitlines()[0]}; the model wants {field.type}") from None
