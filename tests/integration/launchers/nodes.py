"""Two machines as far as the network can tell: network namespaces joined by a cable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launchers.processes import ADMIN_PATH, require, run, succeeds

ADDRESSES = {"node0": "192.0.2.1", "node1": "192.0.2.2"}
"""Of the block that is set aside for documentation and led nowhere."""


@contextmanager
def two_nodes(folder: Path) -> Iterator[None]:
    """Make the namespaces `node0` and `node1` with their addresses; remove them after the block.

    Args:
        folder: for the nodes' table of hosts.
    """
    require("ip", "unshare", packages="iproute2 util-linux")
    if not succeeds("ip", "link", "add", "name", "recmtl0", "type", "veth", "peer", "name", "recmtl1"):
        pytest.skip("this kernel, or this container, makes no veth pair: ip link add type veth")
    hosts = [f"{address} {node}" for node, address in ADDRESSES.items()]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
    try:
        for number, (node, address) in enumerate(ADDRESSES.items()):
            run("ip", "netns", "add", f"recmtl-{node}")
            run("ip", "link", "set", f"recmtl{number}", "netns", f"recmtl-{node}")
            inside = ("ip", "-netns", f"recmtl-{node}")
            run(*inside, "address", "add", f"{address}/24", "dev", f"recmtl{number}")
            run(*inside, "link", "set", f"recmtl{number}", "up")
            run(*inside, "link", "set", "lo", "up")
        yield
    finally:
        succeeds("ip", "link", "delete", "recmtl0")  # there only if it did not get into its namespace
        for node in ADDRESSES:
            succeeds("ip", "netns", "delete", f"recmtl-{node}")


def launch(node: str, folder: Path, *args: object) -> subprocess.Popen[str]:
    """Start `python -m recmtl.launch ARGS` on a node, which knows its own name and the other's."""
    script = f'hostname {node}; mount --bind {folder}/hosts /etc/hosts; exec ip netns exec recmtl-{node} "$@"'
    command = [sys.executable, "-m", "recmtl.launch", *map(str, args)]
    return subprocess.Popen(
        [
            "unshare",
            "--mount",
            "--uts",
            "--pid",
            "--mount-proc",
            "--fork",
            "--kill-child",
            "sh",
            "-ec",
            script,
            "sh",
            *command,
        ],
        env={**os.environ, "PATH": ADMIN_PATH, "OMP_NUM_THREADS": "1", "LOGLEVEL": "WARNING"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
