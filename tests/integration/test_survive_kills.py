"""SIGKILL of a rank, twenty times in a row; other numbers of ranks; several nodes. Minutes long."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs import Job, free_port, last_step, running, standalone, training, weights
from toy import write_toy

from recmtl.optim.sparse import CPU_SPARSE_OPTIMIZERS

pytestmark = pytest.mark.slow

KILLS, STEPS = 20, 1000
command = partial(training, training__max_steps=STEPS, checkpoint__every_steps=10)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy(folder, {"train": 3000, "val": 400, "test": 501})
    return folder


def finish(*args: object, **options: Any) -> Job:
    with running(*args, **options) as job:
        assert job.end() == 0, job.stderr
        return job


def curve(run: Path) -> list[dict[str, float]]:
    """Every line of metrics.jsonl, without what the clock tells."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]


def results(run: Path) -> dict[str, Any]:
    found = json.loads((run / "results.json").read_text())
    return {key: found[key] for key in ("epochs", "best_epoch", "steps", "test", "val", "logloss_sum")}


def test_twenty_kills_in_a_row_change_no_bit(data, tmp_path):
    """Of one rank or the other, at a random step, in a checkpoint's write, or while the ranks start."""
    finish(*command(data, tmp_path / "undisturbed"), launcher=standalone(2))
    run, rng = tmp_path / "killed", random.Random(0)
    checkpoints = run / "checkpoints"
    # Each third of the kills is of one kind; those at steps and in writes are spread over the run.
    points = sorted(rng.sample(range(1, STEPS - 100), KILLS))
    kinds = rng.sample(["step", "write", "start"] * 7, KILLS)
    with running(*command(data, run), launcher=standalone(2, KILLS)) as job:
        for number, (point, kind) in enumerate(zip(points, kinds, strict=True)):
            ranks = job.wait_for(lambda number=number: len(found := job.ranks(number)) == 2 and found)
            if kind == "start":
                time.sleep(rng.uniform(0, 8))
            else:
                job.wait_for(lambda point=point: last_step(run) >= point)
            if kind == "write":
                job.wait_for(lambda: list(checkpoints.glob(".step-*.tmp")), pause=0.0005)
                time.sleep(rng.uniform(0, 0.03))
            unfinished = [path.name for path in checkpoints.glob(".step-*")]
            rank = rng.randrange(2)
            ranks[rank].kill()
            print(f"{number + 1:2} {kind:5} rank {rank} at step {last_step(run)} {unfinished}", flush=True)
        assert job.end() == 0, job.stderr
    assert "Traceback" not in job.stderr
    assert curve(run) == curve(tmp_path / "undisturbed")
    assert results(run) == results(tmp_path / "undisturbed")
    last = f"checkpoints/step-{STEPS:09d}"
    assert weights(run / last) == weights(tmp_path / "undisturbed" / last)


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "the folder is made": lambda folder: folder.exists(),
    "tables are half written": lambda folder: any(0 < file.stat().st_size < 2**24 for file in folder.glob("*.distcp")),
    "the index is written": lambda folder: (folder / ".metadata").exists(),
    "all but its name": lambda folder: (folder / "manifest.json").exists(),
}
"""How far a checkpoint's folder is whose files with tables are larger than 16 MiB."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_kills_while_a_checkpoint_is_written_change_no_bit(tmp_path, ranks):
    """At every moment of the write, of every rank; the first one is halted meanwhile, so that it gets no further."""
    data, run = tmp_path / "data", tmp_path / "killed"
    write_toy(data, {"train": 3000, "val": 400, "test": 501}, table_rows=(400_000, 500_000))
    flags = {"training__max_steps": 500, "checkpoint__every_steps": 5}
    finish(*command(data, tmp_path / "undisturbed", **flags), launcher=standalone(ranks))
    kills = [(moment, rank) for moment in MOMENTS for rank in range(ranks)]
    with running(*command(data, run, **flags), launcher=standalone(ranks, len(kills))) as job:
        for number, (moment, rank) in enumerate(kills):
            processes = job.wait_for(lambda number=number: len(found := job.ranks(number)) == ranks and found)
            halted = job.wait_for(lambda moment=moment, first=processes[0]: halt(first, run, MOMENTS[moment]), pause=0)
            print(f"{moment}: rank {rank} at step {last_step(run)}, {halted.name}", flush=True)
            processes[rank].kill()
            processes[0].resume()
        assert job.end() == 0, job.stderr
    assert "Traceback" not in job.stderr
    assert curve(run) == curve(tmp_path / "undisturbed")
    assert results(run) == results(tmp_path / "undisturbed")
    last = "checkpoints/step-000000500"
    assert weights(run / last) == weights(tmp_path / "undisturbed" / last)


def halt(process: psutil.Process, run: Path, moment: Callable[[Path], bool]) -> Path | None:
    """Halt a rank while it writes a checkpoint that is as far as `moment` says; None: there is none just now."""
    for folder in run.glob("checkpoints/.step-*.tmp"):
        with suppress(FileNotFoundError):
            if not moment(folder):
                continue
            process.suspend()
            while process.status() != psutil.STATUS_STOPPED:
                time.sleep(0.001)
            if folder.exists() and moment(folder):
                return folder
            process.resume()
    return None


@pytest.mark.parametrize("optimizer", CPU_SPARSE_OPTIMIZERS)
def test_two_ranks_then_one_then_four_train_alike(data, tmp_path, optimizer):
    """Stopped by max_steps in the middle of an epoch each time; the optimisers keep a number a row, a row, nothing."""
    flags = {"model__dropout": 0.0, "embedding__optimizer": optimizer}
    finish(*command(data, tmp_path / "undisturbed", training__max_steps=140, **flags), launcher=standalone(2))
    run = tmp_path / "run"
    for ranks, steps in ((2, 40), (1, 85), (4, 140)):
        finish(*command(data, run, training__max_steps=steps, **flags), launcher=standalone(ranks))
    ours, expected = ([line for line in curve(path) if "loss" in line] for path in (run, tmp_path / "undisturbed"))
    assert [line["step"] for line in ours] == list(range(1, 141))
    for one, other in zip(ours, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert results(run)["logloss_sum"] == pytest.approx(results(tmp_path / "undisturbed")["logloss_sum"], rel=1e-4)


@pytest.mark.parametrize(("host", "said"), [(0, "rank 0 lost another rank"), (1, "recmtl.launch: no answer from")])
def test_an_error_on_one_node_ends_the_other(tmp_path, host, said):
    """Two launchers of one rank each; only the second rank reads the file that is cut short. The launchers meet at the
    first or, which takes the meeting point away with it, at the second.
    """
    data, run = tmp_path / "data", tmp_path / "run"
    write_toy(data, {"train": 100_000, "val": 400, "test": 501})
    part = data / "train" / "part-00001.parquet"
    meet = [f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-backend=c10d", "--rdzv-id=job"]
    size = ["--nnodes=2", "--nproc-per-node=1", "--local-addr=localhost"]
    nodes = [[*size, *meet, f"--rdzv-conf=is_host={int(node == host)}"] for node in range(2)]
    train = command(data, run, reader__streams=2, training__max_steps=0)
    env = {"GLOO_SOCKET_IFNAME": "lo"}
    with running(*train, launcher=nodes[0], env=env) as one, running(*train, launcher=nodes[1], env=env) as other:
        one.wait_for(lambda: list(run.glob("checkpoints/step-*")))
        os.truncate(part, part.stat().st_size // 2)
        began = time.monotonic()
        codes = {job.end(): job for job in (one, other)}
        print(f"both ended after {time.monotonic() - began:.1f} s")
    assert sorted(codes) == [1, 2]
    assert f"error: {part}: not readable as Parquet (" in codes[2].stderr
    [line] = codes[1].stderr.splitlines()
    assert line.startswith(f"error: {said}")
    assert len(codes[2].stderr.splitlines()) == 1
