"""A Docker daemon of its own, and the project's image on a base made with debootstrap."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launchers.processes import ADMIN_PATH, daemon, require, run, succeeds
from launchers.torchx import CHECKOUT

SUITE, PYTHON = "bookworm", "3.11"
"""The Debian of the base image, and the Python in it."""
IMAGE = "recmtl:latest"
LEFT_OUT = (".git", ".venv", "demo", "work", "results", "__pycache__", ".*_cache")


class Docker:
    """The client of one daemon."""

    def __init__(self, socket: Path) -> None:
        self.env = {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "1"}
        # The client of the daemon's own package knows BuildKit; another one may lack its plugin.
        self.client = shutil.which("docker", path=f"/usr/bin:{ADMIN_PATH}") or "docker"

    def __call__(self, *args: object, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run `docker ARGS`."""
        ended = subprocess.run(
            [self.client, *map(str, args)],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check:
            assert ended.returncode == 0, f"docker {' '.join(map(str, args))}\n{ended.stdout}\n{ended.stderr}"
        return ended

    def clean(self) -> None:
        """Remove all containers, and the network that TorchX makes, whose bridge would outlive the daemon."""
        containers = self("ps", "--all", "--quiet").stdout.split()
        if containers:
            self("rm", "--force", "--volumes", *containers)
        self("network", "rm", "torchx", check=False)


@contextmanager
def docker_daemon(folder: Path) -> Iterator[Docker]:
    """Start a daemon that keeps everything in a folder and leaves the machine's firewall alone; remove it afterwards.

    Args:
        folder: to be made; its path must be short, for sockets lie in it.
    """
    require("dockerd", "docker", "debootstrap", packages="docker.io debootstrap")
    folder.mkdir()
    docker = Docker(folder / "docker.sock")
    command = ["dockerd", "--host", docker.env["DOCKER_HOST"], "--pidfile", folder / "pid"]
    places = ["--data-root", folder / "data", "--exec-root", folder / "exec"]
    network = ["--iptables=false", "--bridge=none"]
    try:
        with daemon(
            [*command, *places, *network],
            folder / "log",
            lambda: succeeds(docker.client, "version", env=docker.env),
        ):
            try:
                yield docker
            finally:
                docker.clean()
    finally:
        succeeds("umount", folder / "exec" / "netns" / "default")  # the daemon leaves it when it made a network
        shutil.rmtree(folder)


def build_image(docker: Docker, folder: Path) -> None:
    """Build the image without a network: the base from Debian's packages, the wheels from pip's own index.

    Args:
        docker: where.
        folder: to be made, for the base and the build's context.
    """
    base, context = folder / "base", folder / "context"
    folder.mkdir()
    include = "--include=python3,python3-venv,ca-certificates"
    run("debootstrap", "--variant=minbase", include, SUITE, base)
    run("tar", "--directory", base, "--create", "--file", folder / "base.tar", ".")
    docker("import", folder / "base.tar", "recmtl-base")
    shutil.rmtree(base)
    shutil.copytree(CHECKOUT, context, ignore=shutil.ignore_patterns(*LEFT_OUT))
    wheels = context / "requirements" / "wheels"
    if not wheels.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        stack = ["-r", context / "requirements" / "cpu.txt", "-r", context / "requirements" / "nodeps.txt"]
        run(*pip, "--python-version", PYTHON, "--dest", wheels, *stack)
    docker("build", "--network=none", "--build-arg", "BASE_IMAGE=recmtl-base", "--tag", IMAGE, context)
    shutil.rmtree(folder)
