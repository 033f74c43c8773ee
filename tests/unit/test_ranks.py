"""What a rank knows of the machine or container it runs in."""

from __future__ import annotations

import psutil
import pytest

from recmtl.distributed import ranks


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
    monkeypatch.setattr(ranks, "CONTAINER_LIMITS", paths)
    assert ranks.host_memory() == (expected or psutil.virtual_memory().total)


def test_one_machines_ranks_need_no_name_of_it(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(variable, raising=False)
    with ranks.process_group("cpu"):
        assert ranks.os.environ["GLOO_SOCKET_IFNAME"] == "lo"
