"""``POST /predict``: rows as people write them.

{"common": {"user_id": 7}, "rows": [{"product_id": 1}, {"product_id": 2}]}
→ {"model": "shop", "version": "3f…", "predictions": [{"click": 0.12}, {"click": 0.07}]}
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from recmtl.serving.columns import BadRequest, Request, from_json

KEYS = ("common", "rows")


def parse(body: bytes, schema: pa.Schema, most_rows: int) -> Request:
    """A request from its body.

    Args:
        body: JSON.
        schema: names and types of the columns that the model reads; others are not looked at.
        most_rows: more are refused.

    Raises:
        BadRequest: says what is wrong, in one line.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"body: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadRequest('body: must be an object, {"common": {...}, "rows": [{...}]}')
    if unknown := [key for key in value if key not in KEYS]:
        raise BadRequest(f"body: no key {unknown[0][:100]!r}; there are common and rows")
    rows, common = value.get("rows"), value.get("common") or {}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadRequest("rows: must be a list of objects, one per row")
    if not isinstance(common, dict):
        raise BadRequest("common: must be an object: what all rows share")
    if len(rows) > most_rows:
        raise BadRequest(f"rows: {len(rows)} are more than {most_rows}; send several requests")
    return Request(len(rows), {field.name: _column(field, common, rows) for field in schema})


def _column(field: pa.Field, common: dict[str, Any], rows: list[dict[str, Any]]) -> pa.Array:
    name = field.name
    if name in common:
        if any(name in row for row in rows):
            raise BadRequest(f"column {name!r}: is in common and in rows; give it once")
        return from_json([common[name]], field)
    try:
        return from_json([row[name] for row in rows], field)
    except KeyError:
        place = next(number for number, row in enumerate(rows) if name not in row)
        raise BadRequest(f"rows[{place}]: no column {name!r}; null says that it is missing") from None


def answer(name: str, version: str, tasks: tuple[str, ...], scores: np.ndarray) -> bytes:
    """The response's body, from probabilities float32 [B, T]."""
    predictions = [dict(zip(tasks, row, strict=True)) for row in scores.tolist()]
    return orjson.dumps({"model": name, "version": version, "predictions": predictions})
