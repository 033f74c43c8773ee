"""TorchX component of a whole job: `torchx run -s SCHEDULER components/pipeline.py:pipeline --help`."""

import shlex
from pathlib import PurePath
from typing import Dict, List, Optional

import torchx.specs as specs

from torchx_specs.arguments import check_numbers, refuse
from torchx_specs.launcher import node_role


def pipeline(
    *args: str,
    recipe: str,
    raw: str,
    out: str,
    models: List[str],
    ranks: int = 0,
    name: str = "pipeline",
    image: str = "recmtl:latest",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Prepares data, trains several models on it one after the other, and puts them into one table, on one node.

    Everything after `--` goes to each `recmtl train`:
    `torchx run -s local_cwd components/pipeline.py:pipeline --recipe merrec --raw RAW --out OUT --models mmoe,ple`.
    It writes OUT/data, OUT/runs/MODEL and OUT/report. Started again, it goes on where it stopped: data that are there
    are not prepared again, a run goes on from its newest checkpoint.

    Args:
        args: arguments of every `recmtl train`, such as --training.batch_size 4096.
        recipe: a recipe's name or the path of a TOML file.
        raw: folder of the raw Parquet files.
        out: folder for everything that is made.
        models: presets or TOML files, separated by commas; the file's name names the run.
        ranks: processes that train; 0: one a GPU, or a single one where there is no GPU.
        name: name of the job and prefix of its log lines.
        image: container image with recmtl in it, for the schedulers that run containers.
        h: named resource of the node (cpu-2, h100x1, h100x8, a100x8); goes before cpu, gpu and memMB.
        cpu: cores of the node.
        gpu: GPUs of the node.
        memMB: memory of the node in MB.
        env: environment variables (KEY=value,KEY=value).
        mounts: mounts of the container (type=bind,src=/host,dst=/container[,readonly], or type=volume,...).
        max_retries: how often the scheduler starts the job again after a failure.
    """
    check_numbers(1, cpu=cpu, memMB=memMB)
    check_numbers(0, ranks=ranks, gpu=gpu)
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    ranks = ranks or max(1, resource.gpu)
    data = f"{out}/data"
    runs = [f"{out}/runs/{PurePath(model).stem}" for model in models]
    if len(set(runs)) < len(runs):
        refuse(f"--models {','.join(models)}: two of them have the same name and would share a run folder")
    launcher = ["python", "-m", "recmtl.launch", "--standalone", "--nproc-per-node", str(ranks), "--"]
    commands = [
        *(
            [*launcher, "train", model, "--data", data, "--run", run, *args]
            for model, run in zip(models, runs, strict=True)
        ),
        ["python", "-m", "recmtl", "report", *runs, "--out", f"{out}/report"],
    ]
    prepared = shlex.join(["test", "-e", f"{data}/dataset.json"])
    script = [
        "set -e",
        # The shell passes SIGTERM on and waits, so that training can write a checkpoint.
        "trap 'kill -TERM $!; wait $!' TERM",
        f"{prepared} || {_waited(['python', '-m', 'recmtl', 'prepare', recipe, raw, data])}",
        *map(_waited, commands),
    ]
    role = node_role(
        ["bash", "-c", "\n".join(script)],
        name=name,
        image=image,
        resource=resource,
        env=env,
        mounts=mounts,
        max_retries=max_retries,
        ranks=ranks,
    )
    return specs.AppDef(name=name, roles=[role])


def _waited(command: List[str]) -> str:
    """A command in the background and a wait for it: a shell runs its traps between commands and in `wait` only."""
    return f"{{ {shlex.join(command)} & wait $!; }}"
