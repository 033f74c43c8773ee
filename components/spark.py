"""TorchX component that prepares data on Spark: `torchx run -s SCHEDULER components/spark.py:prepare --help`."""

import shlex
from typing import Dict, List, Optional

import torchx.specs as specs

from torchx_specs.arguments import check_numbers
from torchx_specs.launcher import node_role


def prepare(
    *args: str,
    master: str,
    conf: Optional[Dict[str, str]] = None,
    name: str = "prepare-spark",
    image: str = "recmtl:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Turns raw logs into training data with `recmtl prepare --engine spark`; one node drives a cluster that stands.

    Everything after `--` goes to `recmtl prepare`:
    `torchx run -s local_cwd components/spark.py:prepare --master spark://HOST:7077 -- merrec RAW OUT`.

    Args:
        args: arguments of `recmtl prepare`.
        master: Spark's master, such as spark://HOST:7077.
        conf: settings of Spark (spark.executor.cores=4,spark.executor.memoryOverhead=9g).
        name: name of the job and prefix of its log lines.
        image: container image with recmtl, PySpark and Java in it, for the schedulers that run containers.
        h: named resource of the node (cpu-2); goes before cpu and memMB.
        cpu: cores of the driver.
        memMB: memory of the driver in MB.
        env: environment variables (KEY=value,KEY=value).
        mounts: mounts of the container (type=bind,src=/host,dst=/container[,readonly], or type=volume,...).
        max_retries: how often the scheduler starts the job again after a failure.
    """
    check_numbers(1, cpu=cpu, memMB=memMB)
    settings = [word for key, value in (conf or {}).items() for word in ("--conf", f"{key}={value}")]
    variables = {"PYSPARK_SUBMIT_ARGS": shlex.join([*settings, "pyspark-shell"]), **(env or {})}
    role = node_role(
        ["python", "-m", "recmtl", "prepare", *args, "--engine", "spark", "--master", master],
        name=name,
        image=image,
        resource=specs.resource(cpu=cpu, memMB=memMB, h=h),
        env=variables,
        mounts=mounts,
        max_retries=max_retries,
    )
    return specs.AppDef(name=name, roles=[role])
