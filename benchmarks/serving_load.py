"""Half an hour of what a server meets: swaps, a damaged export, wrong requests, a restart. Nobody may notice.

    python benchmarks/serving_load.py --minutes 30

Two exports with other weights take turns behind the link that is served, and the right answer of each to every request
is known. Clients send good requests by both protocols, retry what a restart breaks, and mix in requests that are wrong.
A quarter of the way a damaged export is offered; half-way the server is ended by SIGTERM and started again.
"""

from __future__ import annotations

import http.client
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from email.message import Message
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro
from common import RESULTS, machine, markdown_table, write_results
from export_tables import proportional
from exports import write_export
from serving import Running, free_port, wait_until_ready
from serving_requests import ROWS, as_plain, as_tensors, payloads

from recmtl.inference.exported import ExportedModel
from recmtl.inference.signature import TABLES

TOLERANCE = 1e-6
RETRY_SECONDS = 90.0
"""How long a client tries again: a server takes a while to start."""
REFUSED = {
    "no JSON": b"{",
    "a number for an object": b'{"rows": [1]}',
    "NaN": b'{"rows": [{"user_id": NaN}]}',
    "no columns": b'{"rows": [{}, {}]}',
    "deep": b'{"rows": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "a text for a number": b'{"common": {"user_id": "seven"}, "rows": [{}]}',
}
"""Bodies that are answered with status 400."""


@dataclass
class Options:
    """How long, how much."""

    minutes: float = 30.0
    """How long clients send."""
    clients: int = 4
    """Clients at once."""
    rate: float = 5.0
    """Requests per second of each client."""
    swap_seconds: float = 60.0
    """Between two swaps."""
    wrong: float = 0.01
    """Share of the requests that are wrong."""
    preset: str = "mmoe"
    """Preset of both exports."""
    embedding_rows: int = 1_000_000
    """Rows of all tables of an export together."""
    workers: int = 1
    """Workers of the server."""
    out: Path = RESULTS
    """Folder for the results."""


class Exports:
    """Two exports, one that is damaged, and the link that leads to one of them."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.good = [folder / "a", folder / "b"]
        for seed, path in enumerate(self.good):
            write_export(path, options.preset, options.embedding_rows, seed)
        self.damaged = Path(shutil.copytree(self.good[0], folder / "damaged"))
        with (self.damaged / TABLES / "product.npy").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
        self.live = folder / "live"
        self.lead_to(self.good[0])
        models = [ExportedModel(path) for path in self.good]
        bodies = payloads(models[0])
        tables = {feature.name: str(feature.table) for feature in models[0].encoder.features}
        self.requests = {"plain": [*map(as_plain, bodies)], "tensors": [as_tensors(body, tables) for body in bodies]}
        self.right = {model.version: [_predict(model, body) for body in bodies] for model in models}

    def lead_to(self, folder: Path) -> None:
        """Replace the link in one step."""
        following = self.live.with_name("next")
        following.symlink_to(folder)
        following.rename(self.live)


def _predict(model: ExportedModel, payload: dict[str, Any]) -> np.ndarray:
    """Probabilities [B, T] of a request."""
    rows = [{**payload["common"], **row} for row in payload["rows"]]
    table = model.predict({name: [row[name] for row in rows] for name in model.features})
    return np.stack([table[name].to_numpy() for name in table.column_names], axis=1)


class Client(threading.Thread):
    """Sends requests and compares answers."""

    def __init__(self, options: Options, exports: Exports, service: Service, until: float, seed: int) -> None:
        super().__init__()
        self.options, self.exports, self.service, self.until = options, exports, service, until
        self.random, self.count = random.Random(seed), Counter[str]()
        self.slowest, self.mistakes = 0.0, list[str]()
        self.connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        """Until the end, at a steady rate."""
        try:
            self._send()
        except BaseException as error:
            self._failed(f"the client itself failed: {error!r}")
            raise

    def _send(self) -> None:
        following = time.monotonic()
        while time.monotonic() < self.until:
            if self.random.random() < self.options.wrong:
                self._wrong()
            else:
                self._good()
            following = max(following + 1 / self.options.rate, time.monotonic() - 1)
            time.sleep(max(0.0, following - time.monotonic()))

    def _good(self) -> None:
        """A request that must be answered, and rightly."""
        protocol = self.random.choice(("plain", "tensors"))
        place = self.random.randrange(len(self.exports.requests[protocol]))
        began = time.monotonic()
        while time.monotonic() < began + RETRY_SECONDS:
            try:
                status, headers, answer = self._exchange(self.exports.requests[protocol][place])
            except (OSError, http.client.HTTPException):
                restart = "during the restart" if self.service.restarting else "while the server ran"
                self.count[f"tries that met no server {restart}"] += 1
                time.sleep(0.5)
                continue
            if status in (429, 503):
                self.count[f"tries answered {status}"] += 1
                time.sleep(0.5)
                continue
            self.slowest = max(self.slowest, time.monotonic() - began)
            if status != 200:
                return self._failed(f"status {status}: {answer[:200]!r}")
            version = headers["X-Model-Version"]
            found, right = _probabilities(headers, answer), self.exports.right.get(version)
            if right is None or found.shape != right[place].shape or np.abs(found - right[place]).max() > TOLERANCE:
                self.mistakes.append(f"wrong answer of {version}")
                self.count["wrong answers"] += 1
            else:
                self.count["right answers"] += 1
                self.count[f"by {version}"] += 1
            return None
        self._failed("no answer")

    def _failed(self, why: str) -> None:
        self.count["failed good requests"] += 1
        self.mistakes.append(why)

    def _wrong(self) -> None:
        """A request that must be refused, or that ends half-way."""
        name = self.random.choice([*REFUSED, "half"])
        self.count["wrong requests"] += 1
        try:
            if name == "half":
                with socket.create_connection(("127.0.0.1", self.service.port), 10) as connection:
                    connection.sendall(self.exports.requests["plain"][0][:1000])
                return
            head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(REFUSED[name])}\r\n\r\n".encode()
            status, _, answer = self._exchange(head + REFUSED[name])
        except (OSError, http.client.HTTPException):
            self.count["wrong requests that met no server"] += 1
            return
        if status == 400 and "error" in json.loads(answer):
            self.count["wrong requests refused"] += 1
        elif status != 503:
            self.count["wrong requests not refused"] += 1
            self.mistakes.append(f"{name}: status {status}")

    def _exchange(self, request: bytes) -> tuple[int, Message, bytes]:
        """Status, headers and body of the answer; the connection is kept."""
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=30)
                self.connection.connect()
            self.connection.sock.sendall(request)
            response = http.client.HTTPResponse(self.connection.sock, method="POST")
            response.begin()
            body = response.read()
            if response.will_close:
                self._close()
            return response.status, response.headers, body
        except (OSError, http.client.HTTPException):
            self._close()
            raise

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _probabilities(headers: Message, answer: bytes) -> np.ndarray:
    """[B, T] of the body of an answer."""
    if (length := headers["Inference-Header-Content-Length"]) is None:
        return np.array([list(row.values()) for row in json.loads(answer)["predictions"]], np.float32)
    return np.frombuffer(answer[int(length) :], np.float32).reshape(-1, ROWS).T


class Service:
    """The server, and what is done to it."""

    def __init__(self, options: Options, exports: Exports, folder: Path) -> None:
        self.options, self.exports, self.folder = options, exports, folder
        self.port = free_port()
        self.restarting = False
        self.memory: list[dict[str, float]] = []
        self.swaps = self.refusals = 0.0
        self.began = time.monotonic()
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = ("serve", self.exports.live, "--port", self.port, "--workers", self.options.workers)
        command = [sys.executable, "-m", "recmtl", *map(str, words), "--watch-seconds", "0.5"]
        self.process = subprocess.Popen(command, cwd=self.folder, stderr=(self.folder / "log").open("a"))
        self.starts += 1
        wait_until_ready(self.process, self.port)

    def stop(self) -> int:
        """End it by SIGTERM; its exit code."""
        self.look()
        self.process.terminate()
        return self.process.wait(60)

    def look(self) -> None:
        """Take note of its memory, and of what it counted since it was started."""
        running = psutil.Process(self.process.pid)
        everyone = [running, *running.children(recursive=True)]
        megabytes = sum(proportional(one.pid) for one in everyone) / 1e6
        self.memory.append({"minute": (time.monotonic() - self.began) / 60, "start": self.starts, "pss_mb": megabytes})
        self.counted = Running(self.process, self.port).metrics()

    def wait_for_refusal(self) -> None:
        """Until an export was refused, a minute at most."""
        self.look()
        before, until = self.counted["recmtl_model_refusals_total"], time.monotonic() + 60
        while self.counted["recmtl_model_refusals_total"] == before and time.monotonic() < until:
            time.sleep(1)
            self.look()

    def tally(self) -> None:
        """Add what it counted; the first swap is its start."""
        self.swaps += self.counted["recmtl_model_swaps_total"] - self.options.workers
        self.refusals += self.counted["recmtl_model_refusals_total"]


def disturb(options: Options, exports: Exports, service: Service, until: float) -> int:
    """Swap, damage and restart until the end; the exit code of the server that was ended half-way."""
    began, total = time.monotonic(), until - time.monotonic()
    steps = [(began + k * options.swap_seconds, "swap") for k in range(1, int(total / options.swap_seconds) + 1)]
    steps += [(began + total / 4 + options.swap_seconds / 2, "damage"), (began + total / 2 + 1, "restart")]
    steps += [(began + 10.0 * k, "look") for k in range(1, int(total / 10))]
    turns = cycle([*reversed(exports.good)])
    now, code = exports.good[0], 0
    for moment, step in sorted(steps):
        time.sleep(max(0.0, moment - time.monotonic()))
        if step == "swap":
            exports.lead_to(now := next(turns))
        elif step == "damage":
            exports.lead_to(exports.damaged)
            service.wait_for_refusal()
            exports.lead_to(now)
        elif step == "restart":
            service.restarting = True
            code = service.stop()
            service.tally()
            service.start()
            service.restarting = False
        else:
            service.look()
    time.sleep(max(0.0, until - time.monotonic()))
    return code


def main(options: Options) -> None:
    """Serve, send, disturb, print and write."""
    place = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exports = Exports(options, folder)
        service = Service(options, exports, folder)
        try:
            until = time.monotonic() + 60 * options.minutes
            clients = [Client(options, exports, service, until, seed) for seed in range(options.clients)]
            for client in clients:
                client.start()
            code = disturb(options, exports, service, until)
            for client in clients:
                client.join()
            codes = [code, service.stop()]
            service.tally()
        finally:
            service.process.kill()
    count = sum((client.count for client in clients), Counter[str]())
    mistakes = [mistake for client in clients for mistake in client.mistakes]
    results = {
        "machine": place,
        "options": {key: value for key, value in asdict(options).items() if key != "out"},
        "count": dict(count),
        "mistakes": mistakes[:100],
        "exit_codes": codes,
        "swaps": service.swaps,
        "refused_exports": service.refusals,
        "slowest_seconds": max(client.slowest for client in clients),
        "memory": service.memory,
    }
    write_results(options.out, "serving_load", f"{options.preset}-{options.minutes:g}min", results, page(results))


def page(results: dict[str, Any]) -> str:
    """The tables of a page."""
    count = results["count"]
    zero = (
        "wrong answers",
        "failed good requests",
        "tries that met no server while the server ran",
        "wrong requests not refused",
    )
    lines = [[name, count.get(name, 0)] for name in zero]
    lines += [[name, value] for name, value in sorted(count.items()) if name not in zero]
    lines += [
        ["exit codes of the server", ", ".join(map(str, results["exit_codes"]))],
        ["swaps", results["swaps"]],
        ["damaged exports refused", results["refused_exports"]],
    ]
    lines += [["slowest good request, retries included, s", float(results["slowest_seconds"])]]
    memory = []
    for start in (1, 2):
        found = [line for line in results["memory"] if line["start"] == start]
        tenth = max(1, len(found) // 10)
        early, late = found[tenth : 3 * tenth] or found, found[-2 * tenth :]
        means = [float(np.mean([line["pss_mb"] for line in some])) for some in (early, late)]
        memory.append([start, len(found), *means, max(line["pss_mb"] for line in found)])
    header = ("start", "looks", "MB early", "MB late", "most MB")
    return "\n\n".join([markdown_table(("what", "how many"), lines), markdown_table(header, memory)])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
