"""TorchX component that measures: `torchx run -s SCHEDULER components/benchmark.py:benchmark --help`."""

from typing import Dict, List, Optional

import torchx.specs as specs

from torchx_specs.arguments import check_numbers
from torchx_specs.launcher import node_role


def benchmark(
    *args: str,
    script: str = "throughput",
    name: str = "benchmark",
    image: str = "recmtl:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 16384,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Runs one of the scripts in benchmarks/ on one node.

    Everything after `--` goes to the script. In a container its results must go to a mounted folder:
    `torchx run -s local_docker components/benchmark.py:benchmark --script reader --mounts ... -- --out DIR`.

    Args:
        args: arguments of the script; `-- --help` lists them.
        script: name of a file in benchmarks/, without its ending.
        name: name of the job and prefix of its log lines.
        image: container image with recmtl in it, for the schedulers that run containers.
        h: named resource of the node (cpu-2, h100x1, h100x8, a100x8); goes before cpu, gpu and memMB.
        cpu: cores of the node.
        gpu: GPUs of the node.
        memMB: memory of the node in MB.
        env: environment variables (KEY=value,KEY=value).
        mounts: mounts of the container (type=bind,src=/host,dst=/container[,readonly], or type=volume,...).
    """
    check_numbers(1, cpu=cpu, memMB=memMB)
    check_numbers(0, gpu=gpu)
    role = node_role(
        ["python", f"benchmarks/{script}.py", *args],
        name=name,
        image=image,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        env=env,
        mounts=mounts,
        max_retries=0,
    )
    return specs.AppDef(name=name, roles=[role])
