"""The HTTP application: health, metadata, inference by two protocols, metrics."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recmtl.errors import UserError
from recmtl.serving import open_inference, plain
from recmtl.serving.batcher import Batcher, BatchReport
from recmtl.serving.columns import BadRequest
from recmtl.serving.columns import Request as Rows
from recmtl.serving.current import CurrentModel
from recmtl.serving.feature_log import FeatureLog
from recmtl.serving.joint import JointScorer
from recmtl.serving.limits import Limits
from recmtl.serving.monitoring import Metrics

access = logging.getLogger("recmtl.serving.access")
JSON, BINARY = "application/json", "application/octet-stream"
INFER = "/v2/models/{name}/infer"
VERSION = "X-Model-Version"
SMALL_BYTES = 100_000
"""Bodies up to here are parsed in the event loop, a millisecond: handing them to a thread costs more."""
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What one process serves."""

    export: Path
    name: str
    """Empty: the recipe's."""
    limits: Limits
    watch_seconds: float
    """Between two looks at where the export's path leads."""
    log_features: Path | None = None
    """Folder for what was scored; None: it is not written."""
    log_share: float = 1.0
    """Of the requests that are written there."""


class Server:
    """The model of the moment, its batcher and its metrics.

    Args:
        settings: what to serve.

    Raises:
        UserError: the export cannot be opened.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(several="PROMETHEUS_MULTIPROC_DIR" in os.environ)
        self.current = CurrentModel(
            settings.export,
            settings.watch_seconds,
            observe=self.metrics.inputs_scored,
            swapped=lambda _: self.metrics.swaps.inc(),
            refused=lambda _: self.metrics.refusals.inc(),
        )
        self.name = settings.name or self.current.scorer.model.signature.name
        schema = self.current.scorer.model.encoder.schema
        self.feature_log = None
        if settings.log_features is not None:
            dropped = self.metrics.dropped.inc
            self.feature_log = FeatureLog(settings.log_features, settings.log_share, schema, dropped)
        self.batcher = Batcher(lambda: self.current.scorer, settings.limits, self._batch_done)

    def end(self) -> None:
        """Answer what waits, then stop."""
        self.current.end()
        self.batcher.end()
        if self.feature_log is not None:
            self.feature_log.end()

    def answered(self, scope: Scope, status: int, version: str, seconds: float) -> None:
        """Count, time and log a request."""
        path = getattr(scope.get("route"), "path", "unknown")
        self.metrics.requests.labels(path, status).inc()
        self.metrics.latency.labels(path).observe(seconds)
        fields = {
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "ms": round(1000 * seconds, 2),
            "rows": scope.get("state", {}).get("rows"),
            "version": version,
        }
        access.info("request", extra={"fields": fields})

    def _batch_done(self, report: BatchReport) -> None:
        self.metrics.batch_done(report)
        self.metrics.waiting.set(self.batcher.waiting_rows)

    async def body(self, request: Request) -> bytes:
        """A request's body, within the limits of size and time.

        Raises:
            BadRequest: it is too large (413), or takes too long (408).
        """
        limits = self.settings.limits
        most = int(limits.body_mb * 1e6)

        async def read() -> bytes:
            parts, size = [], 0
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise BadRequest(f"body: more than {limits.body_mb:g} MB; send several requests", 413)
                parts.append(part)
            return b"".join(parts)

        try:
            with anyio.fail_after(limits.seconds):
                return await read()
        except TimeoutError:
            raise BadRequest(f"body: did not arrive within {limits.seconds:g} s", 408) from None
        except ClientDisconnect:
            raise BadRequest("body: the client went away before its end") from None

    async def read(self, body: bytes, parse: Callable[..., T], *args: object) -> T:
        """What a parser makes of a body, in another thread where it is large, so that other requests need not wait."""
        with self.metrics.parsing.time():
            if len(body) <= SMALL_BYTES:
                return parse(body, *args)
            return await asyncio.to_thread(parse, body, *args)

    async def score(self, rows: Rows) -> tuple[JointScorer, np.ndarray]:
        """Probabilities, and the model that gave them."""
        scorer, scores = await self.batcher.score(rows)
        if self.feature_log is not None:
            model = scorer.model
            self.feature_log.add(rows, model.signature.outputs, scores, model.version)
        return scorer, scores


class Observed:
    """Middleware that counts, times and logs every request, and says in every answer which model there is.

    Starlette's own base class for middleware costs several times as much, with a task and two queues per request.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status, version = time.perf_counter(), 500, self._server.current.scorer.model.version

        async def observed(message: Message) -> None:
            nonlocal status, version
            if message["type"] == "http.response.start":
                status = message["status"]
                version = MutableHeaders(scope=message).setdefault(VERSION, version)
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            self._server.answered(scope, status, version, time.perf_counter() - began)


def create_app(settings: Settings) -> FastAPI:
    """The application.

    Args:
        settings: what to serve.

    Raises:
        UserError: the export cannot be opened; at start-up.
    """
    server = Server(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.end)

    app = FastAPI(title=f"recmtl: {server.name}", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)

    app.add_middleware(Observed, server=server)

    @app.exception_handler(UserError)
    async def mistake(_: Request, error: UserError) -> Response:
        return _mistake(str(error), getattr(error, "status", 400))

    def checked(name: str) -> None:
        if name != server.name:
            raise BadRequest(f"no model {name[:100]!r}; there is {server.name!r}", 404)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        body = await server.body(request)
        encoder = server.current.scorer.model.encoder
        rows = await server.read(body, plain.parse, encoder, settings.limits.rows)
        request.state.rows = rows.rows
        scorer, scores = await server.score(rows)
        model = scorer.model
        with server.metrics.answering.time():
            content = plain.answer(server.name, model.version, model.tasks, scores[:, : len(model.tasks)])
        return Response(content, media_type=JSON, headers={VERSION: model.version})

    @app.post(INFER)
    async def infer(name: str, request: Request) -> Response:
        checked(name)
        body = await server.body(request)
        length = _header_length(request)
        model = server.current.scorer.model
        rows, wanted = await server.read(body, open_inference.parse, length, model, settings.limits.rows)
        request.state.rows = rows.rows
        scorer, scores = await server.score(rows)
        with server.metrics.answering.time():
            content, length = open_inference.answer(server.name, scorer.model, wanted, scores)
        headers = {VERSION: scorer.model.version}
        if length is not None:
            headers[open_inference.HEADER_LENGTH] = str(length)
        return Response(content, media_type=JSON if length is None else BINARY, headers=headers)

    @app.get("/v2/health/live")
    async def live() -> Response:
        return _json({}, 200 if server.batcher.is_alive else 500)

    @app.get("/v2/health/ready")
    async def healthy() -> Response:
        return _json({}, 200 if server.batcher.is_ready else 503)

    @app.get("/v2/models/{name}/ready")
    async def ready(name: str) -> Response:
        checked(name)
        return _json({"name": name, "ready": True})

    @app.get("/v2")
    async def about() -> Response:
        return _json({"name": "recmtl", "version": "1", "extensions": ["binary_tensor_data"]})

    @app.get("/v2/models/{name}")
    async def metadata(name: str) -> Response:
        checked(name)
        return _json(open_inference.metadata(name, server.current.scorer.model))

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.page(), media_type="text/plain; version=0.0.4")

    return app


def _header_length(request: Request) -> int | None:
    text = request.headers.get(open_inference.HEADER_LENGTH)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise BadRequest(f"{open_inference.HEADER_LENGTH}: {text[:50]!r} is no number of bytes")
    return int(text)


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type=JSON)


def _mistake(message: str, status: int) -> Response:
    response = _json({"error": message}, status)
    if status in (429, 503):
        response.headers["Retry-After"] = "1"
    return response
