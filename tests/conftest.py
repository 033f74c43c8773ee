"""Fixtures that tests of all kinds share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
OPT_IN = {
    "stores": "test-stores",
    "docker": "test-docker",
    "slurm": "test-slurm",
    "netns": "test-nodes",
    "spark": "test-spark",
}
"""Tests that start daemons, clusters or networks, by marker: the target of `make` that runs them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the opt-in tests unless `-m` names their marker."""
    for item in items:
        for marker, target in OPT_IN.items():
            if item.get_closest_marker(marker) and marker not in config.getoption("markexpr"):
                item.add_marker(pytest.mark.skip(reason=f"only on demand: make {target}"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets: RECMTL_REAL_DATA, else `shared/data` beside the checkout. Skips without it."""
    folder = Path(os.environ.get("RECMTL_REAL_DATA", CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no real data: {folder} is not a folder; set RECMTL_REAL_DATA to one that has census/ and kuairand/"
        )
    return folder


@pytest.fixture(scope="session")
def esmm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw/, kinds.toml, data/, a short run of esmm in run/ and its export in export/; see `trained`."""
    from trained import train, write_data

    from recmtl.training.export import export_run  # imports TorchRec

    folder = tmp_path_factory.mktemp("esmm")
    train(write_data(folder), folder / "run", "esmm")
    export_run(folder / "run", folder / "export")
    return folder


@pytest.fixture(scope="session")
def run_recmtl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command line in real processes, and return how they ended and what they said."""

    def run(
        *args: object, ranks: int = 1, env: dict[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run `recmtl ARGS`, under torchrun where there are several ranks.

        Args:
            args: the command line; everything is turned into text.
            ranks: number of processes.
            env: environment variables to add.
            timeout: seconds after which the test fails.
        """
        launcher = ["recmtl.launch", "--standalone", f"--nproc-per-node={ranks}", "--"]
        command = [sys.executable, "-m", *(launcher if ranks > 1 else ["recmtl"])]
        process = subprocess.Popen(
            [*command, *map(str, args)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "LOGLEVEL": "WARNING", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the ranks too, or they would outlive their launcher
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run
