"""The roles of components: of a program on one node, and of a command on several ranks, of one machine or many."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from torchx import specs
from torchx.specs import macros

from torchx_specs.arguments import check_numbers, literal, literal_values


def node_role(
    program: Sequence[str],
    *,
    name: str,
    image: str,
    resource: specs.Resource,
    env: dict[str, str] | None,
    mounts: list[str] | None,
    max_retries: int,
    ranks: int | None = None,
    port: int | None = None,
) -> specs.Role:
    """A role that runs one program on one node.

    Args:
        program: its name and arguments, as they were typed.
        name: of the job.
        image: container image.
        resource: of the node.
        env: environment variables to add.
        mounts: mounts of the container, as TorchX reads them.
        max_retries: how often the scheduler starts the job again.
        ranks: processes that share the node's cores where the program starts ranks; None: it starts none.
        port: where the program listens; None: nowhere.
    """
    check_numbers(0, max_retries=max_retries)
    return specs.Role(
        name=name,
        image=image,
        entrypoint=program[0],
        args=[literal(word) for word in program[1:]],
        resource=resource,
        env={**_ranks_env(resource, ranks), "PYTHONUNBUFFERED": "1", **literal_values(env)},
        max_retries=max_retries,
        port_map={} if port is None else {"http": port},
        mounts=specs.parse_mounts(mounts or []),
    )


def ranks_role(
    command: str,
    args: Sequence[str],
    *,
    name: str,
    image: str,
    resource: specs.Resource,
    nodes: int,
    ranks: int,
    env: dict[str, str] | None,
    mounts: list[str] | None,
    max_retries: int,
    max_restarts: int,
    rdzv_port: int,
    rdzv_timeout: int,
) -> specs.Role:
    """A role that runs `recmtl COMMAND ARGS` on nodes x ranks processes, under a launcher on each node.

    Args:
        command: of recmtl.
        args: its arguments, as they were typed.
        name: of the job.
        image: container image.
        resource: of one node.
        nodes: number of nodes.
        ranks: processes on each of them; 0: one a GPU, or a single one where there is no GPU.
        env: environment variables to add.
        mounts: mounts of the containers, as TorchX reads them.
        max_retries: how often the scheduler starts the job again.
        max_restarts: how often a launcher starts its ranks again.
        rdzv_port: port of the first node where several nodes meet.
        rdzv_timeout: seconds that a node waits for the others.
    """
    check_numbers(1, nodes=nodes, rdzv_port=rdzv_port, rdzv_timeout=rdzv_timeout)
    check_numbers(0, ranks=ranks, max_retries=max_retries, max_restarts=max_restarts)
    ranks = ranks or max(1, resource.gpu)
    launcher = [
        "python -m recmtl.launch",
        f"--nnodes {nodes} --nproc-per-node {ranks} --max-restarts {max_restarts}",
        f"--rdzv-backend c10d --rdzv-id {macros.app_id} --rdzv-endpoint {_endpoint(nodes, rdzv_port)}",
        f"--rdzv-conf join_timeout={rdzv_timeout},read_timeout={rdzv_timeout}",
        f"-- {command}",
    ]
    return specs.Role(
        # On Kubernetes the first node's address is in a variable named after the role, so no dashes.
        name=name.replace("-", "_"),
        image=image,
        # A shell, because only the node itself knows the name of the first node.
        entrypoint="bash",
        args=["-c", f"exec {' '.join(launcher)} {literal(shlex.join(args))}"],
        num_replicas=nodes,
        resource=resource,
        env={**_ranks_env(resource, ranks), "PYTHONUNBUFFERED": "1", **literal_values(env)},
        max_retries=max_retries,
        port_map={"c10d": rdzv_port},
        mounts=specs.parse_mounts(mounts or []),
    )


def _ranks_env(resource: specs.Resource, ranks: int | None) -> dict[str, str]:
    """Environment of ranks that share a node: their threads, and a launcher that only warns; nothing without ranks."""
    return {} if ranks is None else {"OMP_NUM_THREADS": str(max(1, resource.cpu // ranks)), "LOGLEVEL": "WARNING"}


def _endpoint(nodes: int, port: int) -> str:
    """Where the nodes meet: any free port of a single node, else the first node, which the scheduler names."""
    # Doubled, because TorchX takes a single $ for one of its own macros.
    return "localhost:0" if nodes == 1 else f"$${{{macros.rank0_env}:=localhost}}:{port}"
