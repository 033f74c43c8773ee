"""TorchX component that serves an export over HTTP: `torchx run -s SCHEDULER components/serve.py:serve --help`."""

from typing import Dict, List, Optional

import torchx.specs as specs

from torchx_specs.arguments import check_numbers
from torchx_specs.launcher import node_role


def serve(
    *args: str,
    host: str = "0.0.0.0",
    port: int = 8080,
    name: str = "serve",
    image: str = "recmtl:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Serves an export over HTTP with `recmtl serve` on one node.

    Everything after `--` goes to `recmtl serve`:
    `torchx run -s local_cwd components/serve.py:serve -- EXPORT`.

    Args:
        args: arguments of `recmtl serve`.
        host: address to listen at; 0.0.0.0: all of the container's.
        port: port to listen at.
        name: name of the job and prefix of its log lines.
        image: container image with recmtl in it, for the schedulers that run containers.
        h: named resource of the node (cpu-2); goes before cpu and memMB.
        cpu: cores of the node.
        memMB: memory of the node in MB.
        env: environment variables (KEY=value,KEY=value).
        mounts: mounts of the container (type=bind,src=/host,dst=/container[,readonly], or type=volume,...).
        max_retries: how often the scheduler starts the server again after a failure.
    """
    check_numbers(1, port=port, cpu=cpu, memMB=memMB)
    role = node_role(
        ["python", "-m", "recmtl", "serve", "--host", host, "--port", str(port), *args],
        name=name,
        image=image,
        resource=specs.resource(cpu=cpu, memMB=memMB, h=h),
        env=env,
        mounts=mounts,
        max_retries=max_retries,
        port=port,
    )
    return specs.AppDef(name=name, roles=[role])
