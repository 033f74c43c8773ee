"""Memory that runs out, for real: processes that may not have as much as they need say what takes how much."""

from __future__ import annotations

import os
import resource

import pytest
from jobs import Job, running, standalone, training
from toy import write_toy

from recmtl.distributed.oom import ADVICE

GB = 10**9
HUGE_TABLE = (50, 150_000_000)
"""Of 9.6 GB, which is never there: a process of `limited_to` cannot even ask for it."""
WIDE = {"model__expert_widths": 20_000, "sharding__device_memory_gib": 1000, "training__max_epochs": 1}
"""A layer of 0.3 MB a row; the check before the start believes in memory without end."""


def limited_to(bytes_: int):
    """In the process to start: the memory it may ask for."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))


def the_line(job: Job) -> str:
    """All that a job says when it ends with a user's mistake, beside its progress."""
    assert job.end() == 2, job.stderr
    [line] = [line for line in job.stderr.splitlines() if not line.startswith("epoch ")]
    return line


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_table_too_large(tmp_path, ranks):
    write_toy(tmp_path / "data", {"train": 300, "val": 50, "test": 50}, table_rows=HUGE_TABLE)
    command = training(tmp_path / "data", tmp_path / "run", sharding__device_memory_gib=40)
    with running(*command, launcher=standalone(ranks), before=limited_to(8 * GB)) as job:
        line = the_line(job)
    assert line.startswith("error: out of memory on rank ")
    assert "and 40.000 GiB should be there; table item 9.499 GiB, " in line
    assert line.endswith(f"; {ADVICE}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_batch_too_large(tmp_path, where):
    """Of 30,000 rows in training, or after a training split of 64 in validation."""
    rows = {"train": 30_000, "val": 64} if where == "training" else {"train": 64, "val": 30_000}
    write_toy(tmp_path / "data", {**rows, "test": 64})
    command = training(tmp_path / "data", tmp_path / "run", training__batch_size=30_000, **WIDE)
    with running(*command, before=limited_to(8 * GB)) as job:
        line = the_line(job)
    assert line.startswith("error: out of memory on rank 0: by its plan it needs ")
    assert "and 1000.000 GiB should be there; activations " in line
    assert line.endswith(f"; {ADVICE}")


def test_what_is_too_large_for_sure_is_not_tried(tmp_path):
    write_toy(tmp_path / "data", {"train": 30_000, "val": 50, "test": 50})
    flags = WIDE | {"training__batch_size": 30_000, "sharding__device_memory_gib": 4}
    with running(*training(tmp_path / "data", tmp_path / "run", **flags)) as job:
        line = the_line(job)
    assert line.startswith("error: rank 0 needs ")
    assert " of 4.000 GiB: activations " in line
    assert line.endswith(f"; {ADVICE}")
    assert not (tmp_path / "run").exists()


def test_elsewhere(tmp_path):
    """Results of 8 GB, none of them on the disk."""
    results = tmp_path / "run" / "results.json"
    results.parent.mkdir()
    results.touch()
    os.truncate(results, 8 * GB)
    with running("report", tmp_path / "run", "--out", tmp_path / "report", before=limited_to(4 * GB)) as job:
        assert job.end() == 2
    assert job.stderr.splitlines()[-1] == "error: out of memory"
