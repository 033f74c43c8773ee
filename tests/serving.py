"""A server in a process of its own, and clients of its two protocols."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

SECONDS = 60.0
"""A server may take so long to start; these machines are slow at times."""


@dataclass
class Answer:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def predict(self, rows: list[dict[str, Any]], common: dict[str, Any] | None = None) -> Answer:
        """Score rows by the plain protocol."""
        return self.call("POST", "/predict", json.dumps({"common": common or {}, "rows": rows}).encode())

    def metric(self, line: str) -> float:
        """The value of a line of the metrics' page that begins so; 0 where there is none."""
        page = self.call("GET", "/metrics").body.decode()
        values = [float(text.rpartition(" ")[2]) for text in page.splitlines() if text.startswith(line + " ")]
        return sum(values)

    def stop(self) -> int:
        """End it as schedulers do; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


@contextmanager
def serving(export: Path, log: Path, *words: object) -> Iterator[Server]:
    """Start a server on a free port, wait until it is ready, and end it afterwards."""
    command = [sys.executable, "-m", "recmtl", "serve", str(export), "--port", "0", *map(str, words)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, text=True)
    try:
        yield Server(process, _port(process, log), log)
    finally:
        process.kill()
        process.wait()


def _port(process: subprocess.Popen[str], log: Path) -> int:
    """The port that a server says it listens at, once it answers."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"listening at http://[\d.]+:(\d+)", log.read_text()):
            wait_until_ready(process, int(found[1]), log)
            return int(found[1])
        time.sleep(0.1)
    raise AssertionError(f"the server did not start: {log.read_text()}")


def wait_until_ready(process: subprocess.Popen[str], port: int, log: Path) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise AssertionError(f"the server did not start: {log.read_text()}")


def as_json(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON has them: dates, times and decimals as texts, bytes as base64, NaN as null."""
    return [{name: _plain(value) for name, value in row.items()} for row in table.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def as_arrays(table: pa.Table) -> dict[str, np.ndarray]:
    """Inputs of the Open Inference Protocol by name; texts and bytes are objects."""
    found: dict[str, np.ndarray] = {}
    for name in table.schema.names:
        values = table[name].combine_chunks()
        if pa.types.is_list(values.type):
            lists = [value or [] for value in values.to_pylist()]
            found[f"{name}.lengths"] = np.array([len(value) for value in lists], np.int64)
            present = np.array([item is not None for value in lists for item in value], bool)
            if not present.all():
                found[f"{name}.items.present"] = present
            values = pa.array([item for value in lists for item in value], values.type.value_type)
        elif values.null_count:
            found[f"{name}.present"] = np.array(values.is_valid().to_pylist())
        found[name] = _array(values)
    return found


def _array(values: pa.Array) -> np.ndarray:
    """Something of the type stands in the place of nulls."""
    kind, items = values.type, values.to_pylist()
    if pa.types.is_boolean(kind):
        return np.array([bool(value) for value in items], bool)
    if pa.types.is_integer(kind):
        return np.array([value or 0 for value in items], np.uint64 if kind == pa.uint64() else np.int64)
    if pa.types.is_floating(kind):
        return np.array([0.0 if value is None else value for value in items], np.float64)
    texts = ["" if value is None else value if isinstance(value, bytes) else str(value) for value in items]
    return np.array([text if isinstance(text, bytes) else text.encode() for text in texts], object)


def tensors(table: pa.Table) -> tuple[list[dict[str, Any]], bytes]:
    """Inputs of the Open Inference Protocol with binary data."""
    inputs, data = [], b""
    for name, values in as_arrays(table).items():
        datatype = {"O": "BYTES", "b": "BOOL", "f": "FP64", "i": "INT64", "u": "UINT64"}[values.dtype.kind]
        raw = values.tobytes()
        if datatype == "BYTES":
            raw = b"".join(len(value).to_bytes(4, "little") + value for value in values)
        parameters = {"binary_data_size": len(raw)}
        inputs.append({"name": name, "datatype": datatype, "shape": [len(values)], "parameters": parameters})
        data += raw
    return inputs, data


def infer_body(table: pa.Table, **more: Any) -> tuple[bytes, int]:
    """The body of a request, and how many bytes of it are JSON."""
    inputs, data = tensors(table)
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + data, len(header)
