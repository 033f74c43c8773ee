"""An S3 server on this machine, and a proxy before it that is slow or fails as a test says."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jobs import free_port

BUCKET = "bucket"
Fault = str | None
"""``503``, ``429`` or ``500``: what is answered; ``cut``: half of the answer comes, then the connection ends; ``hold``:
nothing comes until the proxy is closed."""


class Proxy:
    """Stands before an S3 server.

    Args:
        port: of the server.

    Attributes:
        delay: seconds before each request is passed on.
        fault: called with method and path of each; what befalls it.
        requests: method and path of each.
    """

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self.closed = threading.Event()
        proxy = self

        class Handler(_Handler):
            def handle_request(self) -> None:
                self.forward(proxy, port)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def calm(self) -> None:
        """Pass everything on at once from here on."""
        self.delay, self.fault = 0.0, lambda method, path: None
        self.requests.clear()

    def close(self) -> None:
        """Stop."""
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def forward(self, proxy: Proxy, port: int) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        proxy.requests.append((self.command, path))
        fault = proxy.fault(self.command, path)
        time.sleep(proxy.delay)
        if fault == "hold":
            proxy.closed.wait()
            self.close_connection = True
            return
        if fault in ("503", "429", "500"):
            self._answer(int(fault), {}, b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>")
            return
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        dropped = ("transfer-encoding", "content-length", "connection", "server", "date")
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
        if self.command == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length") or "0"
        self._answer(answer.status, kept, content, cut=fault == "cut")

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.wfile.flush()
        self.close_connection = self.close_connection or cut

    def handle_request(self) -> None:
        raise NotImplementedError

    def _handle(self) -> None:
        with suppress(ConnectionError):
            self.handle_request()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def s3_server(folder: Path) -> Iterator[Proxy]:
    """A server with an empty bucket, behind a proxy; the environment names it, and a cache in `folder`."""
    port = free_port()
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log, start_new_session=True
        )
    proxy = Proxy(port)
    before = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "opensesame",
        "AWS_DEFAULT_REGION": "us-east-1",
        "RECMTL_CACHE": str(folder / "cache"),
    }
    try:
        _make_bucket(port, process)
        yield proxy
    finally:
        os.environ.clear()
        os.environ.update(before)
        proxy.close()
        process.terminate()
        process.wait()


def _make_bucket(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
            return
        except ConnectionError:
            assert process.poll() is None, "moto's server ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)
