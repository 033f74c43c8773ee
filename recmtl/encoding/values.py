"""What a value of an embedding table is: its SQL type, the Arrow type it is kept in, and its 64-bit key.

    a column, as SQL or a caller yields it ──canonical──▶ Arrow array of the table's type ──keys──▶ uint64

Whole numbers, booleans, dates and times are their own keys; a double's key is its bits; of all else, which is kept as
text (decimals, times of day, UUIDs ...) or bytes, the key is a hash. −0 is 0, NaN is missing.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recmtl.encoding.hashing import hash_texts
from recmtl.schema import FLOATS, INTEGERS

ARROW_TYPES: dict[str, pa.DataType] = {
    "BIGINT": pa.int64(),
    "UBIGINT": pa.uint64(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP_NS": pa.timestamp("ns"),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", tz="UTC"),
    "BLOB": pa.large_binary(),
    "VARCHAR": pa.large_string(),
}
"""The types of a table's values → the Arrow type they are kept in; values of any other are kept as text."""

DECIMAL = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)")


def value_type(sql_type: str) -> str:
    """The type of a table's values, from that of a column: values of columns of one such type compare.

    Of a type that is kept as text it is the type itself: as texts, 1.5 and 1.50 would be different values.
    """
    if sql_type in INTEGERS and sql_type not in ("UBIGINT", "HUGEINT", "UHUGEINT"):
        return "BIGINT"
    if sql_type in FLOATS:
        return "DOUBLE"
    if sql_type in ("TIMESTAMP_S", "TIMESTAMP_MS"):
        return "TIMESTAMP"
    return "VARCHAR" if sql_type in ("JSON", '"NULL"') or sql_type.startswith("ENUM") else sql_type


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type that values of a `value_type` are kept in."""
    return ARROW_TYPES.get(kind, ARROW_TYPES["VARCHAR"])


def canonical(values: pa.Array, kind: str) -> tuple[pa.Array, np.ndarray | None]:
    """Values as a table keeps them.

    Args:
        values: of any type whose values can be ones of `kind`.
        kind: a `value_type`.

    Returns:
        The array of type ``arrow_type(kind)``, null where missing; and where it is null though the value is there but
        none that the type can hold, so that no table has it (bool [n]; None: nowhere).

    Raises:
        ValueError: values of this type are none of `kind`.
    """
    wanted = arrow_type(kind)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.type == wanted:
        found = values
    elif pa.types.is_null(values.type):
        return pa.nulls(len(values), wanted), None
    elif decimal := DECIMAL.fullmatch(kind):
        return _decimals(values, pa.decimal128(int(decimal[1]), int(decimal[2])))
    elif not fits(values.type, wanted):
        raise ValueError(f"{values.type} values where {kind} is wanted")
    elif pa.types.is_large_string(wanted) and pa.types.is_string(values.type):
        return _large(values), None
    else:
        try:
            found = values.cast(wanted)
        except pa.ArrowInvalid:
            return _cast_where_possible(values, wanted)
    if pa.types.is_floating(wanted):
        # −0 + 0 is 0.
        found = pc.if_else(pc.is_nan(found), pa.scalar(None, wanted), pc.add(found, pa.scalar(0.0, wanted)))
    return found, None


def _large(texts: pa.Array) -> pa.Array:
    """Texts with offsets of 64 bits. Of few texts Arrow's cast takes twenty times as long, when caches are cold."""
    present, offsets, data = texts.buffers()
    wide = np.frombuffer(offsets, np.int32).astype(np.int64) if offsets else np.zeros(1, np.int64)
    return pa.Array.from_buffers(
        pa.large_string(), len(texts), [present, pa.py_buffer(wide), data], offset=texts.offset
    )


def _decimals(values: pa.Array, decimal: pa.DataType) -> tuple[pa.Array, np.ndarray | None]:
    """Decimals as texts with all their digits, of numbers or of such texts."""
    if not (fits(values.type, decimal) or is_string(values.type)):
        raise ValueError(f"{values.type} values where {decimal} is wanted")
    refused = None
    try:
        values = values.cast(decimal)
    except pa.ArrowInvalid:
        values, refused = _cast_where_possible(values, decimal)
    # Arrow's own cast writes 0.0000000 as 0E-7.
    texts = [None if value is None else format(value, "f") for value in values.to_pylist()]
    return pa.array(texts, pa.large_string()), refused


def is_string(kind: pa.DataType) -> bool:
    """Whether an Arrow type is one of text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are lists."""
    types = pa.types
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_kind(kind) for is_kind in kinds)


def without_views(column: pa.Array) -> pa.Array:
    """A column whose lists are views as a large list, others as they are.

    Arrow 25's own cast of views among which there are nulls makes lists whose offsets are wrong.
    """
    if not (pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type)):
        return column
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))
    return pa.LargeListArray.from_arrays(offsets, column.flatten(), mask=column.is_null())


def fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of one type may be values of another: numbers numbers, times times, text and whole numbers text.

    Times of day, intervals and the like are none of text: Arrow writes them otherwise than SQL.
    """
    types = pa.types
    if is_string(wanted):
        return is_string(given) or types.is_integer(given)
    if types.is_large_binary(wanted) or types.is_binary(wanted):
        return types.is_binary(given) or types.is_large_binary(given) or types.is_fixed_size_binary(given)
    if types.is_integer(wanted) or types.is_floating(wanted) or types.is_decimal(wanted):
        return is_number(given) or types.is_boolean(given)
    if types.is_boolean(wanted):
        return types.is_integer(given)
    return types.is_date(given) or (
        types.is_timestamp(given) and (given.tz is None) == (getattr(wanted, "tz", None) is None)
    )


def is_number(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are numbers."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _cast_where_possible(values: pa.Array, wanted: pa.DataType) -> tuple[pa.Array, np.ndarray]:
    """Cast value by value what a cast of the whole refuses: 2^63 is no BIGINT, 2.5 none either."""
    cast, refused = [], np.zeros(len(values), bool)
    for row, value in enumerate(values):
        try:
            cast.append(value.cast(wanted).as_py() if value.is_valid else None)
        except pa.ArrowInvalid:
            cast.append(None)
            # NaN is missing, in a column of whole numbers too.
            refused[row] = value.as_py() == value.as_py()
    return pa.array(cast, wanted), refused


def keys(values: pa.Array) -> np.ndarray:
    """The keys of canonical values, uint64 [n]; of a null any."""
    kind = values.type
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return hash_texts(values)
    if pa.types.is_boolean(kind):
        return values.cast(pa.uint8()).fill_null(0).to_numpy().astype(np.uint64)
    # The buffer itself: nulls have a place in it, too.
    data, size = values.buffers()[1], kind.bit_width // 8
    found = np.frombuffer(data, f"i{size}", len(values), values.offset * size) if data else np.empty(0, np.int64)
    return found.astype(np.int64, copy=False).view(np.uint64)


def nulls(values: pa.Array) -> np.ndarray | None:
    """Which values are null, bool [n]; None: no one is."""
    if not values.null_count:
        return None
    if pa.types.is_null(values.type):
        return np.ones(len(values), bool)
    bits = np.frombuffer(values.buffers()[0], np.uint8)
    stop = values.offset + len(values)
    return np.unpackbits(bits, count=stop, bitorder="little")[values.offset : stop] == 0
