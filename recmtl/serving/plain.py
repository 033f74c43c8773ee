"""``POST /predict``: rows as people write them.

{"common": {"user_id": 7}, "rows": [{"product_id": 1}, {"product_id": 2}]}
→ {"model": "shop", "version": "3f…", "predictions": [{"click": 0.12}, {"click": 0.07}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from recmtl.encoding.encoder import Encoder
from recmtl.serving.columns import BadRequest, Request, columns_from_json

KEYS = ("common", "rows")


def parse(body: bytes, encoder: Encoder, most_rows: int) -> Request:
    """A request from its body.

    Args:
        body: JSON.
        encoder: of the model; columns that it does not read are not looked at.
        most_rows: more are refused.

    Raises:
        UserError: says what is wrong, in one line.
    """
    schema = encoder.schema
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"body: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadRequest('body: must be an object, {"common": {...}, "rows": [{...}]}')
    if unknown := [key for key in value if key not in KEYS]:
        raise BadRequest(f"body: no key {unknown[0][:100]!r}; there are common and rows")
    rows, common = value.get("rows"), value.get("common") or {}
    if not isinstance(rows, list) or not {dict}.issuperset(map(type, rows)):
        raise BadRequest("rows: must be a list of objects, one per row")
    if not isinstance(common, dict):
        raise BadRequest("common: must be an object: what all rows share")
    if len(rows) > most_rows:
        raise BadRequest(f"rows: {len(rows)} are more than {most_rows}; send several requests")
    shared = [(field, [common[field.name]]) for field in schema if field.name in common]
    own = [field for field in schema if field.name not in common]
    values = _columns([field.name for field in own], rows)
    # Rows that hold no more than their own columns hold none of the shared ones.
    have_more = not {len(own)}.issuperset(map(len, rows))
    if have_more and (twice := [field.name for field, _ in shared if any(field.name in row for row in rows)]):
        raise BadRequest(f"column {twice[0]!r}: is in common and in rows; give it once")
    found = columns_from_json([*shared, *zip(own, values, strict=True)])
    encoder.check_aligned(found)
    return Request(len(rows), {name: encoder.column(found, name) for name in schema.names})


def _columns(names: list[str], rows: list[dict[str, Any]]) -> list[Sequence[Any]]:
    """The values of each column."""
    if not names or not rows:
        return [[] for _ in names]
    try:
        # One pass over the rows for all columns.
        found = list(map(itemgetter(*names), rows))
    except KeyError:
        place, name = next((place, name) for place, row in enumerate(rows) for name in names if name not in row)
        raise BadRequest(f"rows[{place}]: no column {name!r}; null says that it is missing") from None
    return [found] if len(names) == 1 else list(zip(*found, strict=True))


def answer(name: str, version: str, tasks: tuple[str, ...], scores: np.ndarray) -> bytes:
    """The response's body, from probabilities float32 [B, T]."""
    head = orjson.dumps({"model": name, "version": version})
    # All numbers are written at once and put into the rows' text: a dictionary for each row takes thrice the time.
    numbers = orjson.dumps(np.ascontiguousarray(scores).reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(
        b","
    )
    row = b"{%s}" % b",".join(orjson.dumps(task).replace(b"%", b"%%") + b":%s" for task in tasks)
    rows = b",".join([row] * len(scores)) % tuple(numbers if len(scores) else ())
    return b'%s,"predictions":[%s]}' % (head[:-1], rows)
