"""TorchX component that scores new raw files: `torchx run -s SCHEDULER components/predict.py:predict --help`."""

from typing import Dict, List, Optional

import torchx.specs as specs

from torchx_specs.arguments import check_numbers
from torchx_specs.launcher import ranks_role


def predict(
    *args: str,
    nodes: int = 1,
    ranks: int = 1,
    name: str = "predict",
    image: str = "recmtl:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    rdzv_timeout: int = 1800,
) -> specs.AppDef:
    """Scores new raw files with `recmtl predict`, in one process or, with a run, on nodes x ranks of them.

    Everything after `--` goes to `recmtl predict`:
    `torchx run -s local_cwd components/predict.py:predict -- MODEL RAW OUT`.
    Several ranks hold the tables of a run between them, where no single device has room; an export takes one.

    Args:
        args: arguments of `recmtl predict`.
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
        rdzv_port: port of the first node where several nodes meet.
        rdzv_timeout: seconds that a node waits for the others; long enough for the slowest to pull its image.
    """
    check_numbers(1, cpu=cpu, memMB=memMB)
    check_numbers(0, gpu=gpu)
    role = ranks_role(
        "predict",
        args,
        name=name,
        image=image,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        nodes=nodes,
        ranks=ranks,
        env=env,
        mounts=mounts,
        max_retries=max_retries,
        max_restarts=0,
        rdzv_port=rdzv_port,
        rdzv_timeout=rdzv_timeout,
    )
    return specs.AppDef(name=name, roles=[role])
