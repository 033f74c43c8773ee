"""The server people write first: FastAPI, a dict per table, an nn.Embedding a column, orjson, one worker a core.

For benchmarks/serving.py to compare with; the network is that of benchmarks/plain.py, with random weights.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import orjson
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from plain import PlainMMoE
from workload import merrec_shaped, merrec_tables, table_sizes, values_of

from recmtl.config import load_config
from recmtl.config.models import MMoEConfig
from recmtl.schema import FIRST, UNSEEN

DIM = 32
ROWS = "PLAIN_SERVER_ROWS"
"""Environment variable that tells workers how many embedding rows there are."""


def make_app() -> FastAPI:
    """The application of a worker."""
    torch.set_num_threads(1)
    dataset = merrec_shaped(table_sizes(merrec_tables(), int(os.environ[ROWS])), 0)
    sizes = load_config("mmoe").model
    assert isinstance(sizes, MMoEConfig)
    model = PlainMMoE(dataset, sizes, DIM).eval()
    vocabularies: dict[str, dict[Any, int]] = {}
    for table in dataset.tables:
        ids = np.arange(FIRST, table.rows)
        vocabularies[table.name] = dict(zip(values_of(table.name, ids).to_pylist(), ids.tolist(), strict=True))
    columns = [(feature.name, vocabularies[str(feature.table)]) for feature in dataset.features]
    tasks = [task.name for task in dataset.tasks]
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        body = orjson.loads(await request.body())
        ids = [
            [0 if (value := row[name]) is None else vocabulary.get(value, UNSEEN) for name, vocabulary in columns]
            for row in ({**body["common"], **row} for row in body["rows"])
        ]
        with torch.inference_mode():
            scores = torch.sigmoid(model(torch.tensor(ids))).tolist()
        answer = {"predictions": [dict(zip(tasks, row, strict=True)) for row in scores]}
        return Response(orjson.dumps(answer), media_type="application/json")

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        return Response()

    return app


if __name__ == "__main__":
    port, workers, os.environ[ROWS] = sys.argv[1:]
    uvicorn.run(
        "plain_server:make_app",
        factory=True,
        port=int(port),
        workers=int(workers),
        log_level="error",
        timeout_worker_healthcheck=600,
    )
