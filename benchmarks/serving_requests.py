"""Requests of one user with many items to a server of an export in MerRec's shape, by both protocols."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import torch
from workload import TEXTS, popular_ids, values_of

from recmtl.inference.exported import ExportedModel

ROWS = 200
REQUESTS = 64
"""Different ones; clients send them in turn, each from another on."""
COMMON = ("user_id", "session_id", *(f"hist_{place}" for place in range(1, 8)))
"""Columns that all rows of a request share."""
DATATYPES = {True: "BYTES", False: "INT64"}


def payloads(model: ExportedModel, seed: int = 0) -> list[dict[str, Any]]:
    """Bodies of requests: popular values are more frequent, as in logs."""
    generator = torch.Generator().manual_seed(seed)
    rows = {table.name: table.rows for table in model.encoder.tables}
    found = []
    for _ in range(REQUESTS):
        values = {}
        for feature in model.encoder.features:
            count = 1 if feature.name in COMMON else ROWS
            ids = popular_ids(str(feature.table), rows[str(feature.table)], count, generator)
            values[feature.name] = values_of(str(feature.table), ids).to_pylist()
        items = {name: column for name, column in values.items() if name not in COMMON}
        lines = [dict(zip(items, row, strict=True)) for row in zip(*items.values(), strict=True)]
        found.append({"common": {name: values[name][0] for name in COMMON}, "rows": lines})
    return found


def as_plain(payload: dict[str, Any]) -> bytes:
    """A whole request of the plain protocol."""
    return http_request("/predict", orjson.dumps(payload))


def as_tensors(payload: dict[str, Any], tables: dict[str, str]) -> bytes:
    """A whole request of the Open Inference Protocol with binary data."""
    columns = {name: [value] for name, value in payload["common"].items()}
    columns |= {name: [row[name] for row in payload["rows"]] for name in payload["rows"][0]}
    inputs, data = [], []
    for name, values in columns.items():
        is_text = tables[name] in TEXTS
        present = np.array([value is not None for value in values])
        parts = [
            (name, DATATYPES[is_text], _bytes(values) if is_text else np.array([v or 0 for v in values]).tobytes())
        ]
        if not present.all():
            parts.append((f"{name}.present", "BOOL", present.tobytes()))
        for part, datatype, raw in parts:
            described = {"name": part, "datatype": datatype, "shape": [len(values)]}
            inputs.append({**described, "parameters": {"binary_data_size": len(raw)}})
            data.append(raw)
    header = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    more = f"Inference-Header-Content-Length: {len(header)}\r\n"
    return http_request("/v2/models/merrec/infer", header + b"".join(data), more)


def _bytes(texts: list[str | None]) -> bytes:
    raw = [(text or "").encode() for text in texts]
    return b"".join(len(text).to_bytes(4, "little") + text for text in raw)


def http_request(path: str, body: bytes, more: str = "") -> bytes:
    """A request with its headers."""
    return f"POST {path} HTTP/1.1\r\nHost: a\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body
