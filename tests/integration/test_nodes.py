"""One job on two machines, each with its own network. Needs root: `make test-nodes`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from launchers.nodes import launch, two_nodes
from launchers.torchx import results_of
from toy import write_toy

pytestmark = pytest.mark.netns


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[None]:
    """Two network namespaces joined by a cable."""
    with two_nodes(tmp_path):
        yield


def on_both(folder: Path, ranks: int, *command: object) -> list[tuple[int, str, str]]:
    """Run one job on both nodes; return each one's exit status, output and errors."""
    meet = ("--rdzv-backend=c10d", "--rdzv-endpoint=node0:29500", "--rdzv-id=job", "--rdzv-conf=join_timeout=120")
    agents = [
        launch(node, folder, "--nnodes=2", f"--nproc-per-node={ranks}", *meet, "--", *command)
        for node in ("node0", "node1")
    ]
    try:
        return [(*agent.communicate(timeout=300), agent.returncode)[::-1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()


def test_one_job_on_two_nodes_equals_one_on_one(nodes, tmp_path, run_recmtl):
    write_toy(tmp_path / "data")
    train = ("train", "mmoe", "--data", tmp_path / "data", "--training.device", "cpu", "--training.max_epochs", 2)
    ended = on_both(tmp_path, 1, *train, "--run", tmp_path / "two")
    assert [status for status, *_ in ended] == [0, 0], ended
    assert run_recmtl(*train, "--run", tmp_path / "one", ranks=2).returncode == 0
    two, one = results_of(tmp_path / "two", 2), results_of(tmp_path / "one", 2)
    assert two["logloss_sum"] == pytest.approx(one["logloss_sum"], rel=1e-4)


def test_mistake_ends_both_nodes(nodes, tmp_path):
    ended = on_both(tmp_path, 2, "train", "mmoe", "--data", tmp_path / "nowhere", "--run", tmp_path / "run")
    assert all(status != 0 for status, *_ in ended)
    assert "nowhere: no dataset.json in it" in ended[0][1] + ended[0][2]
    assert "Traceback" not in ended[0][2] + ended[1][2]
