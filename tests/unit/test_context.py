"""What a rank knows of the machine or container it runs in, and of the ranks beside it."""

from __future__ import annotations

import os

import psutil
import pytest
import torch

from recmtl.distributed import context
from recmtl.distributed.context import process_group, resolve_device
from recmtl.errors import UserError


@pytest.fixture
def without_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([], None),
        (["max\n"], None),
        (["5000\n"], 5000),
        (["9223372036854771712\n"], None),  # cgroups v1 without a limit
        (["max\n", "7000\n"], 7000),
    ],
)
def test_memory_is_the_containers_when_that_is_less(tmp_path, monkeypatch, limits, expected):
    paths = [tmp_path / str(number) for number in range(2)]
    for path, limit in zip(paths, limits, strict=False):
        path.write_text(limit)
    monkeypatch.setattr(context, "CONTAINER_LIMITS", paths)
    assert context.host_memory() == (expected or psutil.virtual_memory().total)


def test_one_machines_ranks_need_no_name_of_it(monkeypatch, without_launcher):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with process_group("cpu"):
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


@pytest.mark.parametrize(("local_rank", "gpus"), [(2, 2), (1, 1)])
def test_more_ranks_than_gpus_is_an_error(monkeypatch, local_rank, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match=f"4 ranks on a machine with {gpus} GPUs"), process_group("cuda"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_an_error():
    assert resolve_device("auto") == "cpu"
    with pytest.raises(UserError, match=r"training.device is cuda, but PyTorch sees no GPU"):
        resolve_device("cuda")


def test_ranks_of_a_process_alone(without_launcher):
    with process_group("cpu") as alone:
        assert (alone.rank, alone.world_size, alone.is_first) == (0, 1, True)
        assert alone.max(-2.5) == -2.5
        assert alone.sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
        assert 2**28 < alone.device_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
