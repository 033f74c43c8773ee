"""The HTTP application: health, metadata, inference by two protocols, metrics."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response

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
            return await asyncio.wait_for(read(), limits.seconds)
        except asyncio.TimeoutError:
            raise BadRequest(f"body: did not arrive within {limits.seconds:g} s", 408) from None

    async def score(self, rows: Rows) -> tuple[JointScorer, np.ndarray]:
        """Probabilities, and the model that gave them."""
        scorer, scores = await self.batcher.score(rows)
        if self.feature_log is not None:
            model = scorer.model
            self.feature_log.add(rows, model.signature.outputs, scores, model.version)
        return scorer, scores


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

    @app.middleware("http")
    async def observed(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        try:
            response = await answer(request)
        except UserError as error:
            response = _mistake(str(error), error.status if isinstance(error, BadRequest) else 400)
        seconds = time.perf_counter() - began
        route = request.scope.get("route")
        path = getattr(route, "path", "unknown")
        model = server.current.scorer.model
        response.headers.setdefault("X-Model-Version", model.version)
        server.metrics.requests.labels(path, response.status_code).inc()
        server.metrics.latency.labels(path).observe(seconds)
        fields = {
            "method": request.method,
            "path": request.url.path[:200],
            "status": response.status_code,
            "ms": round(1000 * seconds, 2),
            "rows": getattr(request.state, "rows", None),
            "version": response.headers["X-Model-Version"],
        }
        access.info("request", extra={"fields": fields})
        return response

    def checked(name: str) -> None:
        if name != server.name:
            raise BadRequest(f"no model {name[:100]!r}; there is {server.name!r}", 404)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        body = await server.body(request)
        schema = server.current.scorer.model.encoder.schema
        rows = await asyncio.to_thread(plain.parse, body, schema, settings.limits.rows)
        request.state.rows = rows.rows
        scorer, scores = await server.score(rows)
        model = scorer.model
        content = plain.answer(server.name, model.version, model.tasks, scores[:, : len(model.tasks)])
        return Response(content, media_type=JSON, headers={"X-Model-Version": model.version})

    @app.post(INFER)
    async def infer(name: str, request: Request) -> Response:
        checked(name)
        body = await server.body(request)
        length = _header_length(request)
        model = server.current.scorer.model
        rows, wanted = await asyncio.to_thread(open_inference.parse, body, length, model, settings.limits.rows)
        request.state.rows = rows.rows
        scorer, scores = await server.score(rows)
        content, length = open_inference.answer(server.name, scorer.model, wanted, scores)
        headers = {"X-Model-Version": scorer.model.version}
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
