"""For integration tests that call the command line within the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from disks import disk


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes that `run_recmtl` starts have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_process_group_left() -> Iterator[None]:
    """A command that ends in an error leaves its process group: its process would end there."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 6 MB. Skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with disk(folder, "6m"):
        yield folder
