"""What `recmtl serve` costs beside the model that it runs, and how long clients wait.

    python benchmarks/serving.py

An export with MerRec's published cardinalities (7.9 M rows, dimension 32) and random weights serves requests of one
user with 200 items each. Every client is a process of its own, sends one request at a time, and shares the cores with
the server. Bare forward passes, of ids that are encoded already, run alone on the machine in as many processes and
threads as the server, at the mean batch that it formed; *with encoding* they encode the values, too. The server
people write first (benchmarks/plain_server.py) answers the same requests.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import psutil
import tyro
from common import RESULTS, machine, markdown_table, write_results
from serving_requests import REQUESTS, ROWS, as_plain, as_tensors, payloads

from recmtl.inference.exported import ExportedModel
from recmtl.serving import plain
from recmtl.serving.joint import JointScorer

STAGES = ("parse", "queue", "encode", "forward", "answer")
START_SECONDS = 600


@dataclass
class Options:
    """What to serve and to whom."""

    preset: str = "mmoe"
    """Preset; its dimension is set to 32."""
    embedding_rows: int = 7_910_000
    """Rows of all tables together."""
    compiled: bool = False
    """Serve machine code, as `recmtl export --compile` writes it, in place of the graph."""
    export: Path | None = None
    """Folder of the export, made where it is missing, and kept; None: one for this run alone."""
    clients: tuple[int, ...] = (1, 8, 64)
    """Numbers of clients at once."""
    workers: int | None = None
    """Workers of the server, which share the cores; None: one a core."""
    seconds: float = 8.0
    """How long clients send."""
    protocols: tuple[Literal["plain", "tensors"], ...] = ("plain", "tensors")
    """How requests are written: JSON rows, or the Open Inference Protocol with binary data."""
    plain: bool = True
    """Measure the server people write first as well."""
    pass_only: str = ""
    """For processes that this script starts: a JSON list of export, rows, seconds, threads, and whether to encode."""
    out: Path = RESULTS
    """Folder for the results."""


class Running:
    """A server that answers."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = psutil.Process(process.pid), port

    def cpu(self) -> float:
        """CPU seconds of all its processes so far."""
        everyone = [self.process, *self.process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in everyone)

    def metrics(self) -> dict[str, float]:
        """Its page of metrics; empty where it has none."""
        try:
            page = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics").read().decode()
        except urllib.error.HTTPError:
            return {}
        return {name: float(value) for name, value in re.findall(r"^(recmtl_\w+) (\S+)$", page, re.MULTILINE)}


@contextmanager
def started(*words: object, threads: int = 1) -> Iterator[Running]:
    """Start a server at the port that stands as PORT among the words of its command."""
    port = free_port()
    command = [sys.executable, *(str(port) if word == "PORT" else str(word) for word in words)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as work:
        process = subprocess.Popen(command, env=env, cwd=work, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(process, port)
            yield Running(process, port)
        finally:
            process.terminate()
            process.wait(60)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"a server did not start: {process.args!r}")


def load(server: Running, requests: Sequence[bytes], count: int, seconds: float) -> dict[str, Any]:
    """What clients saw of a server, and what it took."""
    script = Path(__file__).with_name("http_client.py")
    sent = b"".join(len(request).to_bytes(4, "little") + request for request in requests) + bytes(4)
    clients = []
    for place in range(count):
        command = [sys.executable, "-SE", str(script), str(server.port), str(place * len(requests) // count)]
        clients.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert clients[-1].stdin is not None
        clients[-1].stdin.write(sent)
        clients[-1].stdin.flush()
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
    before, cpu = server.metrics(), server.cpu()
    for client in clients:
        assert client.stdin is not None
        client.stdin.write(f"{seconds}\n".encode())
        client.stdin.flush()
    answers = [json.loads(client.communicate()[0]) for client in clients]
    cpu, after = server.cpu() - cpu, server.metrics()
    taken = np.concatenate([answer["milliseconds"] for answer in answers])
    found = {
        "clients": count,
        "requests": len(taken),
        "failed": sum(answer["failed"] for answer in answers),
        "p50_ms": float(np.percentile(taken, 50)),
        "p99_ms": float(np.percentile(taken, 99)),
        "mean_ms": float(taken.mean()),
        "requests_per_second": len(taken) / seconds,
        "cpu_ms": 1000 * cpu / len(taken),
        "client_cpu_ms": 1000 * sum(answer["cpu"] for answer in answers) / len(taken),
    }
    if after:
        change = {name: value - before.get(name, 0.0) for name, value in after.items()}
        stages = {stage: 1000 * change[f"recmtl_{stage}_seconds_sum"] / len(taken) for stage in STAGES}
        found |= {
            "batch_rows": change["recmtl_batch_rows_sum"] / change["recmtl_batch_rows_count"],
            "stages_ms": stages,
        }
    return found


def bare(export: Path, rows: list[float], processes: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Forward passes of some numbers of rows, in several processes at once, without and with encoding.

    Returns:
        By number of rows and kind: requests per second, CPU milliseconds of each, and milliseconds of a pass.
    """
    command = [sys.executable, __file__, "--pass-only", json.dumps([str(export), rows, seconds])]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    running = [
        subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(processes)
    ]

    def together() -> dict[str, float]:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        lines = [json.loads(process.stdout.readline()) for process in running if process.stdout is not None]
        return {
            "requests_per_second": sum(line["requests"] / line["seconds"] for line in lines),
            "cpu_ms": 1000 * sum(line["cpu"] for line in lines) / sum(line["requests"] for line in lines),
            "pass_ms": float(np.median([line["pass_ms"] for line in lines])),
        }

    found = [{kind: together() for kind in ("bare", "bare_with_encoding")} for _ in rows]
    for process in running:
        process.wait()
    return found


def passes(export: Path, rows: list[float], seconds: float) -> None:
    """Run forward passes for some seconds and print what they took, then the same with encoding."""
    model = ExportedModel(export, verify=False)
    scorer = JointScorer(model, lambda *_: None)
    requests = [plain.parse(orjson.dumps(payload), model.encoder, ROWS) for payload in payloads(model)]
    for count, encode in itertools.product((max(1, round(some / ROWS)) for some in rows), (False, True)):
        starts = range(0, REQUESTS, count)
        batches = [[requests[(start + place) % REQUESTS] for place in range(count)] for start in starts]
        groups = [scorer.encode(batch) for batch in batches]
        for batch in groups[:3]:
            scorer.score(batch)
        print("ready", flush=True)
        sys.stdin.readline()
        milliseconds: list[float] = []
        began, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() < began + seconds:
            before, place = time.perf_counter(), len(milliseconds) % len(batches)
            scorer.score(scorer.encode(batches[place]) if encode else groups[place])
            milliseconds.append(1000 * (time.perf_counter() - before))
        found = {"requests": count * len(milliseconds), "seconds": time.perf_counter() - began}
        cpu = time.process_time() - cpu
        print(json.dumps({**found, "cpu": cpu, "pass_ms": float(np.median(milliseconds))}), flush=True)


def measure(options: Options, folder: Path) -> list[dict[str, Any]]:
    """All servers and numbers of clients."""
    # With TorchRec, whose import takes seconds in each process that this script starts.
    from exports import write_export

    export = options.export or folder / "export"
    if not export.exists():
        write_export(export, options.preset, options.embedding_rows, compiled=options.compiled)
    model = ExportedModel(export)
    tables = {feature.name: str(feature.table) for feature in model.encoder.features}
    bodies = payloads(model)
    protocols = {"plain": [as_plain(body) for body in bodies], "tensors": [as_tensors(body, tables) for body in bodies]}
    cores = len(os.sched_getaffinity(0))
    workers = options.workers or cores
    threads = max(1, cores // workers)
    found = []
    for protocol in options.protocols:
        requests = protocols[protocol]
        words = ("-m", "recmtl", "serve", export, "--port", "PORT", "--workers", workers)
        with started(*words, threads=threads) as server:
            load(
                server, requests, max(options.clients), min(2.0, options.seconds)
            )  # the tables' pages come into memory
            seen = [load(server, requests, count, options.seconds) for count in options.clients]
        passed = bare(export, [line["batch_rows"] for line in seen], workers, threads, options.seconds / 2)
        for line, beside in zip(seen, passed, strict=True):
            found.append({"server": f"recmtl, {protocol}", "workers": workers, **line, **beside})
    if options.plain:
        script = Path(__file__).with_name("plain_server.py")
        with started(script, "PORT", cores, options.embedding_rows) as server:
            load(server, protocols["plain"], max(options.clients), min(2.0, options.seconds))
            for count in options.clients:
                line = load(server, protocols["plain"], count, options.seconds)
                found.append({"server": "written first", "workers": cores, **line})
    return found


def body(found: list[dict[str, Any]]) -> str:
    """The tables of a page."""
    mine = [line for line in found if "bare" in line]
    header = ("server", "workers", "clients", "p50 ms", "p99 ms", "requests/s", "CPU ms a request", "rows a batch")
    lines = [
        [
            *(
                line[key]
                for key in ("server", "workers", "clients", "p50_ms", "p99_ms", "requests_per_second", "cpu_ms")
            ),
            line.get("batch_rows", float(ROWS)),
        ]
        for line in found
    ]
    shares = []
    for line in mine:
        passed, encoded = line["bare"], line["bare_with_encoding"]
        rate = line["requests_per_second"]
        shares.append(
            [
                *(line[key] for key in ("server", "workers", "clients")),
                passed["pass_ms"],
                line["p50_ms"] / passed["pass_ms"],
                f"{rate / passed['requests_per_second']:.0%}",
                f"{rate / encoded['requests_per_second']:.0%}",
                f"{passed['cpu_ms'] / line['cpu_ms']:.0%}",
                f"{encoded['cpu_ms'] / line['cpu_ms']:.0%}",
            ]
        )
    of_passes = (
        "server",
        "workers",
        "clients",
        "a forward pass, ms",
        "p50 / forward",
        "requests/s of bare passes",
        "... with encoding",
        "CPU time of bare passes",
        "... with encoding",
    )
    stages = [
        [
            *(line[key] for key in ("server", "workers", "clients")),
            *(line["stages_ms"][stage] for stage in STAGES),
            line["cpu_ms"] - sum(line["stages_ms"][stage] for stage in STAGES if stage != "queue"),
            line["client_cpu_ms"],
        ]
        for line in mine
    ]
    where = ("server", "workers", "clients", *STAGES, "rest of the server's CPU time", "client's CPU time")
    return "\n\n".join(
        [
            markdown_table(header, lines),
            "Shares of bare forward passes of those batches; of *CPU time*, the bare passes' part of the server's:",
            markdown_table(of_passes, shares),
            "Milliseconds per request; encode and forward are shared by the requests of a batch, *queue* is waiting:",
            markdown_table(where, stages),
        ]
    )


def main(options: Options) -> None:
    """Measure, print and write."""
    if options.pass_only:
        export, *rest = json.loads(options.pass_only)
        return passes(Path(export), *rest)
    place = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    place["load_after"] = [round(average, 2) for average in os.getloadavg()]
    name = f"{options.preset}-{options.embedding_rows / 1e6:g}m" + "-compiled" * options.compiled
    asked = {key: value for key, value in asdict(options).items() if key not in ("export", "out", "pass_only")}
    write_results(options.out, "serving", name, {"machine": place, "options": asked, "lines": found}, body(found))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
