"""Which SQL type holds the values of several types exactly."""

from __future__ import annotations

import re
from collections.abc import Collection

NULL = '"NULL"'
"""Type of a column without any value."""
BITS = {"TINYINT": 8, "SMALLINT": 16, "INTEGER": 32, "BIGINT": 64}
RANGES = {
    "BOOLEAN": (0, 1),
    **{name: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for name, bits in BITS.items()},
    **{f"U{name}": (0, 2**bits - 1) for name, bits in BITS.items()},
}
"""Values of the types of whole numbers; a boolean is 0 or 1."""
FLOATS = ("FLOAT", "DOUBLE")
MOST_DIGITS = 38
"""Of a decimal."""
TOO_LONG = f"of more than {MOST_DIGITS} digits"
"""Stands in the type of a column with longer decimals, which DuckDB would round."""
TIMES = (("DATE", "TIMESTAMP", "TIMESTAMP_NS"), ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"), ("TIME", "TIME_NS"))
"""Types of which the later hold the values of the earlier, as far as `limit` allows."""


def unify(types: Collection[str]) -> str | None:
    """The type that holds all values of `types` exactly, within their `limit`; None if there is none."""
    found = set(types) - {NULL}
    if any(TOO_LONG in name for name in found):
        return None
    if len(found) <= 1:
        return found.pop() if found else NULL
    if all(name.endswith("[]") for name in found):
        item = unify({name[:-2] for name in found})
        return f"{item}[]" if item else None
    if found <= {"VARCHAR", "JSON"}:
        return "VARCHAR"
    for times in TIMES:
        if found <= set(times):
            return max(found, key=times.index)
    return _number(found)


def _number(types: set[str]) -> str | None:
    ranges = [RANGES[name] for name in types if name in RANGES]
    floats = [name for name in types if name in FLOATS]
    decimals = [(int(d[1]), int(d[2])) for name in types if (d := re.fullmatch(r"DECIMAL\((\d+),(\d+)\)", name))]
    if len(ranges) + len(floats) + len(decimals) < len(types):
        return None
    if floats:
        return None if decimals else "DOUBLE"
    low, high = min(ranges, default=(0, 0))[0], max((high for _, high in ranges), default=0)
    if decimals:
        whole = max(*(width - scale for width, scale in decimals), len(str(max(high, -low))) if ranges else 0)
        scale = max(scale for _, scale in decimals)
        return f"DECIMAL({whole + scale},{scale})" if whole + scale <= MOST_DIGITS else None
    holds = (name for name, (least, most) in RANGES.items() if least <= low and high <= most and name != "BOOLEAN")
    return min(holds, key=lambda name: RANGES[name][1] - RANGES[name][0], default="DECIMAL(20,0)")


def limit(source: str, target: str) -> int | None:
    """How far from 0 values of type `source` may be to be the same as `target`, None if all are.

    Whole numbers count themselves, times nanoseconds (from 1970).
    """
    source, target = source.rstrip("[]"), target.rstrip("[]")
    if target == "DOUBLE" and source in ("BIGINT", "UBIGINT"):
        return 2**53
    if target in ("TIMESTAMP_NS", "TIMESTAMPTZ_NS") and source != target:
        return 2**63 - 2
    if target == "TIMESTAMP" and source == "DATE":
        return 1000 * (2**63 - 2)
    return None
