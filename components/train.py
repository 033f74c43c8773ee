"""TorchX component that trains a model: `torchx run -s SCHEDULER components/train.py:ddp --help`.

TorchX reads this file alone, its docstrings as help and its annotations as option types, and knows only the
annotations of `typing`.
"""

from typing import Dict, List, Optional

import torchx.specs as specs

from torchx_specs.arguments import check_numbers
from torchx_specs.launcher import ranks_role


def ddp(
    *args: str,
    nodes: int = 1,
    ranks: int = 0,
    name: str = "train",
    image: str = "recmtl:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    max_restarts: int = 0,
    rdzv_port: int = 29500,
    rdzv_timeout: int = 1800,
) -> specs.AppDef:
    """Trains a model with `recmtl train` on nodes x ranks processes.

    Everything after `--` goes to `recmtl train`:
    `torchx run -s local_cwd components/train.py:ddp --ranks 2 -- mmoe --data DIR --run DIR`.

    Args:
        args: arguments of `recmtl train`.
        nodes: number of machines (containers, on a cluster).
        ranks: processes on each of them; 0: one a GPU, or a single one where there is no GPU.
        name: name of the job and prefix of its log lines.
        image: container image with recmtl in it, for the schedulers that run containers.
        h: named resource of one node (cpu-2, h100x1, h100x8, a100x8); goes before cpu, gpu and memMB.
        cpu: cores of one node, shared out among its ranks.
        gpu: GPUs of one node.
        memMB: memory of one node in MB.
        env: environment variables (KEY=value,KEY=value).
        mounts: mounts of the containers (type=bind,src=/host,dst=/container[,readonly], or type=volume,...).
        max_retries: how often the scheduler starts the whole job again after a failure.
        max_restarts: how often a failed rank makes its node start all ranks again, without the scheduler.
        rdzv_port: port of the first node where several nodes meet.
        rdzv_timeout: seconds that a node waits for the others; long enough for the slowest to pull its image.
    """
    check_numbers(1, cpu=cpu, memMB=memMB)
    check_numbers(0, gpu=gpu)
    role = ranks_role(
        "train",
        args,
        name=name,
        image=image,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        nodes=nodes,
        ranks=ranks,
        env=env,
        mounts=mounts,
        max_retries=max_retries,
        max_restarts=max_restarts,
        rdzv_port=rdzv_port,
        rdzv_timeout=rdzv_timeout,
    )
    return specs.AppDef(name=name, roles=[role])
