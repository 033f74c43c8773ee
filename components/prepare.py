"""TorchX component that prepares data: `torchx run -s SCHEDULER components/prepare.py:prepare --help`."""

from typing import Dict, List, Optional

import torchx.specs as specs

from torchx_specs.arguments import check_numbers
from torchx_specs.launcher import node_role


def prepare(
    *args: str,
    name: str = "prepare",
    image: str = "recmtl:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Turns raw logs into training data with `recmtl prepare` on one node.

    Everything after `--` goes to `recmtl prepare`:
    `torchx run -s local_cwd components/prepare.py:prepare -- merrec RAW OUT`.

    Args:
        args: arguments of `recmtl prepare`.
        name: name of the job and prefix of its log lines.
        image: container image with recmtl in it, for the schedulers that run containers.
        h: named resource of the node (cpu-2); goes before cpu and memMB.
        cpu: cores of the node.
        memMB: memory of the node in MB.
        env: environment variables (KEY=value,KEY=value).
        mounts: mounts of the container (type=bind,src=/host,dst=/container[,readonly], or type=volume,...).
        max_retries: how often the scheduler starts the job again after a failure.
    """
    check_numbers(1, cpu=cpu, memMB=memMB)
    role = node_role(
        ["python", "-m", "recmtl", "prepare", *args],
        name=name,
        image=image,
        resource=specs.resource(cpu=cpu, memMB=memMB, h=h),
        env=env,
        mounts=mounts,
        max_retries=max_retries,
    )
    return specs.AppDef(name=name, roles=[role])
