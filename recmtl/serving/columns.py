"""What a request says of a column, as an Arrow array of the type that the encoder reads."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from recmtl.encoding.values import is_string
from recmtl.errors import UserError
from recmtl.inference.columns import as_array

PLAIN: tuple[tuple[Callable[[pa.DataType], bool], type, pa.DataType], ...] = (
    (pa.types.is_integer, int, pa.int64()),
    (pa.types.is_floating, float, pa.float64()),
    (is_string, str, pa.string()),
)
"""Columns whose values JSON has as they are: Python's type of them, and the one that Arrow gives an array of these."""


class BadRequest(UserError):
    """A mistake of the client: one line that names the column or the key, and the HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """Rows to score."""

    rows: int
    columns: Mapping[str, pa.Array]
    """By name, `rows` values each, or one that all rows share; as `Encoder.column` gives them, so that requests whose
    clients wrote numbers in other types, or nulls alone, go into one batch."""


def columns_from_json(columns: Sequence[tuple[pa.Field, Sequence[Any]]]) -> dict[str, pa.Array]:
    """`from_json` of several columns: those of one type together, where all values are of that type.

    Raises:
        BadRequest: as `from_json` does.
    """
    found: dict[str, pa.Array] = {}
    by_type: dict[pa.DataType, list[tuple[pa.Field, Sequence[Any]]]] = {}
    for field, values in columns:
        by_type.setdefault(field.type, []).append((field, values))
    for kind, some in by_type.items():
        together = _all_of(kind, list(chain.from_iterable(values for _, values in some)))
        start = 0
        for field, values in some:
            stop = start + len(values)
            found[field.name] = from_json(values, field) if together is None else together[start:stop]
            start = stop
    return found


def _all_of(kind: pa.DataType, values: list[Any]) -> pa.Array | None:
    """Values as an array of the type that Arrow finds in them; None unless all are of Python's type for it."""
    python, arrow = next((both for is_kind, *both in PLAIN if is_kind(kind)), (None, None))
    if python is None or not {python, type(None)}.issuperset(map(type, values)):
        return None
    try:
        return pa.array(values, arrow)
    except (pa.ArrowException, OverflowError):
        return None


def from_json(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """An array of JSON values. Dates, times and decimals are texts, as people write them; bytes are base64.

    Raises:
        BadRequest: the values have no type in common, or none that the column can have.
    """
    try:
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            values = [value if value is None else base64.b64decode(value, validate=True) for value in values]
        found = as_array(values, field)
        return found.cast(field.type) if _comes_as_text(field.type) else found
    except BadRequest:
        raise
    except UserError as error:
        raise BadRequest(str(error)) from None
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadRequest(f"column {field.name!r}: {reason}; the model wants {field.type}") from None


def _comes_as_text(kind: pa.DataType) -> bool:
    """Whether JSON has no values of a type, nor of the items of lists of it."""
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind):
        return _comes_as_text(kind.value_type)
    return types.is_temporal(kind) or types.is_decimal(kind)
