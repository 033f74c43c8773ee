"""TorchX component of a job for every day: `torchx run -s SCHEDULER components/rolling.py:rolling --help`."""

from typing import Dict, List, Optional

import torchx.specs as specs

from torchx_specs.arguments import check_numbers
from torchx_specs.launcher import node_role


def rolling(
    *args: str,
    recipe: str,
    raw: str,
    out: str,
    config: str,
    ranks: int = 0,
    name: str = "rolling",
    image: str = "recmtl:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Does every day of a log that is ready with `recmtl roll`, on one node: prepares, trains on, judges, exports.

    Everything after `--` goes to `recmtl roll`, its own options and changes to the configuration:
    `torchx run -s local_cwd components/rolling.py:rolling --recipe merrec_time --raw RAW --out OUT --config mmoe
    -- --keep 7 --training.max_epochs 1`.
    Start it once a day, or more often: where nothing is new, it ends at once. Started again, it goes on where it
    stopped.

    Args:
        args: options of `recmtl roll`, such as --gate "like.auc >= 0.7".
        recipe: a recipe's name or the path of a TOML file.
        raw: folder of the raw Parquet files, which grows.
        out: folder of the job; OUT/current leads to the export to be served.
        config: a preset or a TOML file.
        ranks: processes that train and measure; 0: one a GPU, or a single one where there is no GPU.
        name: name of the job and prefix of its log lines.
        image: container image with recmtl in it, for the schedulers that run containers.
        h: named resource of the node (cpu-2, h100x1, h100x8, a100x8); goes before cpu, gpu and memMB.
        cpu: cores of the node.
        gpu: GPUs of the node.
        memMB: memory of the node in MB.
        env: environment variables (KEY=value,KEY=value).
        mounts: mounts of the container (type=bind,src=/host,dst=/container[,readonly], or type=volume,...).
        max_retries: how often the scheduler starts the job again after a failure; a refused day is one, too.
    """
    check_numbers(1, cpu=cpu, memMB=memMB)
    check_numbers(0, ranks=ranks, gpu=gpu)
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    ranks = ranks or max(1, resource.gpu)
    role = node_role(
        ["python", "-m", "recmtl", "roll", recipe, raw, out, config, "--ranks", str(ranks), *args],
        name=name,
        image=image,
        resource=resource,
        env=env,
        mounts=mounts,
        max_retries=max_retries,
        ranks=ranks,
    )
    return specs.AppDef(name=name, roles=[role])
