"""A Slurm cluster on this machine: two nodes, with the accounting that TorchX reads a job's state from."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from launchers.processes import daemon, require, run, succeeds

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sacct")
PACKAGES = "slurmctld slurmd slurmdbd slurm-client munge mariadb-server"

ACCOUNTING = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdPort={ports[0]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""

CLUSTER = """\
ClusterName=recmtl
SlurmctldHost={host}
SlurmctldPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports[0]}
AccountingStoragePass={folder}/munge.sock
# The nodes may have more cores than the machine.
SlurmdParameters=config_overrides
# At once, not by the minute, so that a job started again starts soon.
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=node0 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
NodeName=node1 NodeAddr=127.0.0.1 Port={ports[3]} CPUs=4 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

NODE = "hostname {node}; mount --bind {folder}/hosts /etc/hosts; exec slurmd -D -N {node}"
"""Each node has its own host name, and knows the other's."""


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start munged, MariaDB, slurmdbd, slurmctld and two slurmd; end them and remove everything after the block.

    Args:
        folder: to be made; its path must be short, for sockets lie in it.

    Yields:
        The environment of the cluster's users.
    """
    require(*PROGRAMS, packages=PACKAGES)
    folder.mkdir()
    env = {"SLURM_CONF": f"{folder}/slurm.conf", "MYSQL_UNIX_PORT": f"{folder}/db.sock"}
    places = {"folder": folder, "host": socket.gethostname().partition(".")[0], "ports": free_ports(4)}
    write(folder / "munge.key", os.urandom(128))
    write(folder / "slurmdbd.conf", ACCOUNTING.format(**places).encode())
    write(folder / "slurm.conf", CLUSTER.format(**places).encode())
    write(folder / "hosts", Path("/etc/hosts").read_bytes() + b"\n127.0.0.1 node0 node1\n")
    (folder / "state").mkdir()
    data = f"--datadir={folder}/db"
    run("mariadb-install-db", "--no-defaults", "--user=root", data, "--auth-root-authentication-method=socket")
    munge = [f"--key-file={folder}/munge.key", f"--socket={folder}/munge.sock", f"--pid-file={folder}/munge.pid"]
    munge += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    database = [data, f"--socket={folder}/db.sock", f"--pid-file={folder}/db.pid", "--skip-networking"]
    try:
        with ExitStack() as cluster:

            def start(name: str, command: list[str], *ready: str) -> None:
                """Start a daemon that serves when the command `ready` succeeds."""
                log = folder / f"{name}.out"
                cluster.enter_context(daemon(command, log, lambda: succeeds(*ready, env=env), env))

            start("munged", ["munged", "--foreground", "--force", *munge], "test", "-S", f"{folder}/munge.sock")
            start(
                "mariadb",
                ["mariadbd", "--no-defaults", "--user=root", *database],
                *("mariadb-admin", "--no-defaults", f"--socket={folder}/db.sock", "ping"),
            )
            start("slurmdbd", ["slurmdbd", "-D"], "sacctmgr", "--noheader", "show", "cluster")
            start("slurmctld", ["slurmctld", "-D"], "scontrol", "ping")
            for node in ("node0", "node1"):
                command = NODE.format(node=node, folder=folder)
                idle = f"sinfo --noheader --nodes={node} --states=idle | grep -q {node}"
                start(node, ["unshare", "--mount", "--uts", "sh", "-ec", command], "sh", "-c", idle)
            yield env
            succeeds("scancel", "--user=root", env=env)
    finally:
        shutil.rmtree(folder)


def write(path: Path, content: bytes) -> None:
    """Write a file that only root may read, as munge and slurmdbd want theirs."""
    path.touch(mode=0o600)
    path.write_bytes(content)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [open_socket.getsockname()[1] for open_socket in sockets]
    for open_socket in sockets:
        open_socket.close()
    return ports
