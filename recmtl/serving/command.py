"""``recmtl serve``: one process a worker, all on one port; they share the tables, which are mapped."""

from __future__ import annotations

import json
import logging
import os
import socket
from dataclasses import asdict

import torch
import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from recmtl.errors import UserError
from recmtl.inference.exported import ExportedModel
from recmtl.runtime.folders import scratch_folder
from recmtl.runtime.storage import parse_path
from recmtl.serving.app import Settings, create_app
from recmtl.serving.limits import Limits
from recmtl.serving.monitoring import log_json

SETTINGS = "RECMTL_SERVING"
"""Environment variable that tells workers what to serve."""
THREADS = "OMP_NUM_THREADS"
"""Environment variable with the number of a process's threads; where it is not set, workers share the cores."""
GRACE_SECONDS = 25
"""How long accepted requests may take after SIGTERM; Kubernetes kills after 30 s."""
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""How long an idle connection is kept: longer than load balancers do, a minute, or they would send into its end."""
START_SECONDS = 300
"""How long a worker may take to open the export before it is taken for dead."""


def serve(settings: Settings, host: str, port: int, workers: int) -> None:
    """Serve an export until SIGTERM or Ctrl-C; accepted requests are answered.

    Args:
        settings: what to serve.
        host: address to listen at.
        port: port; 0: any that is free.
        workers: number of processes.

    Raises:
        UserError: the export cannot be opened, or the address not be taken.
    """
    log_json()
    if THREADS not in os.environ:
        os.environ[THREADS] = str(max(1, len(os.sched_getaffinity(0)) // workers))  # what workers go by
        torch.set_num_threads(int(os.environ[THREADS]))
    listening = _listen(host, port)
    address = f"http://{host}:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        "recmtl.serving.command:make_app" if workers > 1 else create_app(settings),
        factory=workers > 1,
        workers=workers,
        log_config=None,
        access_log=False,  # the application writes its own lines
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_worker_healthcheck=START_SECONDS,
        server_header=False,
    )
    if workers == 1:
        logging.getLogger("recmtl.serving").info("listening at %s", address)
        uvicorn.Server(config).run([listening])
        return
    # Workers that cannot open the export would end one by one and be started again: it is opened here first.
    ExportedModel(settings.export)
    os.environ[SETTINGS] = json.dumps(asdict(settings), default=str)
    with scratch_folder() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        logging.getLogger("recmtl.serving").info("listening at %s with %d workers", address, workers)
        Multiprocess(config, [listening]).run()


def make_app() -> FastAPI:
    """The application of a worker."""
    fields = json.loads(os.environ[SETTINGS])
    log_json()
    fields |= {"export": parse_path(fields["export"]), "limits": Limits(**fields["limits"])}
    if fields["log_features"] is not None:
        fields["log_features"] = parse_path(fields["log_features"])
    return create_app(Settings(**fields))


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the address is taken, or none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.set_inheritable(True)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason}); name another") from None
    return listening
