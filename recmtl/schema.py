"""What everything else speaks of: features, embedding tables, tasks, ids, types."""

from recmtl.data.dataset import Dataset, Feature, Table, Task

MISSING, UNSEEN, FIRST = 0, 1, 2
"""Ids of missing and of unseen or rare values, and the first of a value."""

SIGNED = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
INTEGERS = (*SIGNED, *(f"U{name}" for name in SIGNED))
FLOATS = ("FLOAT", "DOUBLE")
"""SQL types of numbers, beside DECIMAL(precision, scale)."""


def is_number(sql_type: str) -> bool:
    """Whether values of a SQL type are numbers, or booleans, which count as 0 and 1."""
    return sql_type in (*INTEGERS, *FLOATS, "BOOLEAN") or sql_type.startswith("DECIMAL")


__all__ = ["FIRST", "FLOATS", "INTEGERS", "MISSING", "UNSEEN", "Dataset", "Feature", "Table", "Task", "is_number"]
