"""Data, runs, exports and predictions on an S3 server that is slow and fails: they are those that a disk holds."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import Job, running, standalone
from s3_server import BUCKET, Fault, Proxy, s3_server
from stores import put

from recmtl.runtime import remote
from recmtl.runtime.storage import exists, list_files, list_folder, local_path, parse_path, read_json, read_text

pytestmark = pytest.mark.s3

EVENTS, STEPS = 60_000, 60
SETTINGS = {
    "training.batch_size": 1024,
    "training.max_steps": STEPS,
    "training.max_epochs": 10,
    "training.device": "cpu",
    "model.dropout": 0.1,
    "checkpoint.every_steps": 7,
}
NUMBERS = ("epochs", "best_epoch", "steps", "test", "val", "logloss_sum")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with s3_server(tmp_path_factory.mktemp("s3")) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def calm(s3: Proxy) -> Iterator[None]:
    yield
    s3.calm()


def url(name: str) -> Path:
    return parse_path(f"s3://{BUCKET}/{name}")


def do(*args: object, ranks: int = 1, code: int = 0, **options: Any) -> Job:
    with running(*args, launcher=standalone(ranks) if ranks > 1 else None, **options) as job:
        assert job.end() == code, job.stderr
        return job


def training(data: Path, run: Path, **settings: object) -> list[object]:
    chosen = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    return ["train", "mmoe", "--data", data, "--run", run, *(w for key, v in chosen.items() for w in (f"--{key}", v))]


@pytest.fixture(scope="module")
def disk(s3: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files and data on a disk; both are in the bucket too."""
    folder = tmp_path_factory.mktemp("disk")
    do("synth", "merrec", folder / "raw", "--events", EVENTS)
    put(folder / "raw", url("raw"))
    do("prepare", "merrec", folder / "raw", folder / "data")
    put(folder / "data", url("data"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(disk: Path) -> Path:
    """A run of two ranks on that disk."""
    do(*training(disk / "data", disk / "run"), ranks=2)
    return disk / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): local_path(path).read_bytes() for path in list_files(folder)}


def checkpoints(run: Path) -> list[str]:
    """Names of those that are whole."""
    return [path.name for path in list_folder(run / "checkpoints", "step-*") if exists(path / "manifest.json")]


def weights(run: Path, step: int = STEPS) -> dict[str, Any]:
    manifest = read_json(run / "checkpoints" / f"step-{step:09d}" / "manifest.json")
    return {name: entry for name, entry in manifest.items() if name.endswith(".distcp")}


def assert_same_end(run: Path, other: Path) -> None:
    """No bit of the model differs, nor of what was measured."""
    assert weights(run) == weights(other)
    results, expected = (read_json(path / "results.json") for path in (run, other))
    assert {key: results[key] for key in NUMBERS} == {key: expected[key] for key in NUMBERS}
    curve, wanted = (
        [_without_clock(line) for line in read_text(path / "metrics.jsonl").splitlines()] for path in (run, other)
    )
    assert curve == wanted


def _without_clock(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key != "examples_per_second"}


def sometimes(share: float) -> Any:
    """A server of which a share of the requests fails in one way or another."""
    rng = random.Random(0)

    def fault(method: str, path: str) -> Fault:
        return rng.choice(("503", "429", "500", "cut")) if rng.random() < share else None

    return fault


def test_the_whole_way_on_a_server_that_fails_and_with_kills(s3: Proxy, disk: Path, undisturbed: Path, tmp_path: Path):
    s3.fault = sometimes(0.05)
    do("prepare", "merrec", url("raw"), url("way/data"))
    assert contents(url("way/data")) == contents(disk / "data")

    run = url("way/run")
    command = training(url("way/data"), run)
    for rank, step in ((0, 7), (1, 28)):  # the first rank holds the lease
        with running(*command, launcher=standalone(2)) as job:
            job.wait_for(lambda step=step: any(int(name[5:]) >= step for name in checkpoints(run)))
            job.ranks()[rank].kill()
            assert job.end() != 0
    do(*command, ranks=2)
    assert_same_end(run, undisturbed)

    said = do("evaluate", run, "--data", url("way/data")).stdout
    assert said == do("evaluate", undisturbed, "--data", disk / "data").stdout
    [measured] = list_files(run / "evaluations")
    assert read_json(measured)["test"] == read_json(undisturbed / "evaluations" / measured.name)["test"]

    do("export", run, url("way/export"))
    do("export", undisturbed, tmp_path / "export")
    found, wanted = contents(url("way/export")), contents(tmp_path / "export")
    assert found.keys() == wanted.keys()
    tables = [name for name in found if name.startswith(("tables/", "encoder/", "vocab/"))]
    assert {name: found[name] for name in tables} == {name: wanted[name] for name in tables}

    do("predict", url("way/export"), url("raw"), url("way/scores"))
    do("predict", tmp_path / "export", disk / "raw", tmp_path / "scores")
    found, wanted = scores(url("way/scores")), scores(tmp_path / "scores")
    kept = [name for name in wanted.column_names if not name.startswith("p_")]
    assert found.select(kept).equals(wanted.select(kept))
    for name in ("p_view", "p_like"):  # rows come in any order, and the last digit depends on those beside them
        assert np.abs(found[name].to_numpy() - wanted[name].to_numpy()).max() < 1e-6

    do("report", run, "--out", url("way/report"))
    assert [path.name for path in list_files(url("way/report"))] == ["report.csv", "report.html", "report.md"]
    assert len(s3.requests) > 500


def scores(folder: Path) -> pa.Table:
    parts = [pq.read_table(local_path(path)) for path in list_files(folder) if path.suffix == ".parquet"]
    table = pa.concat_tables(parts)
    return table.sort_by([(name, "ascending") for name in table.column_names if not name.startswith("p_")])


@pytest.mark.parametrize("name", ["__1_0.distcp", "manifest.json"])
def test_a_checkpoint_that_was_half_uploaded_is_none(s3: Proxy, undisturbed: Path, name: str):
    """The upload of one of its files hangs until both ranks are killed."""
    run = url(f"half/{name}")
    held = []

    def fault(method: str, path: str) -> Fault:
        if method == "PUT" and path.endswith(f"step-000000021/{name}"):
            held.append(path)
            return "hold"
        return None

    s3.fault = fault
    command = training(url("data"), run)
    with running(*command, launcher=standalone(2)) as job:
        job.wait_for(lambda: held)
        job.kill()
    assert checkpoints(run) == ["step-000000007", "step-000000014"]
    assert exists(run / "checkpoints" / "step-000000021" / "__0_0.distcp") or name != "manifest.json"
    s3.calm()
    with running(*command, launcher=standalone(2)) as job:
        job.wait_for(lambda: any(method == "DELETE" or "step-000000014" in path for method, path in s3.requests))
        assert job.end() == 0, job.stderr
    assert_same_end(run, undisturbed)
    assert not list_folder(run / "checkpoints", ".*")


def test_a_second_run_at_once_is_refused(s3: Proxy, disk: Path):
    run = url("twice/run")
    endless = training(url("data"), run, training__max_steps=0, training__max_epochs=1000, training__patience=0)
    with running(*endless) as job:
        job.wait_for(lambda: checkpoints(run))
        second = do(*endless, code=2)
        assert f"error: {run}: in use by process {job.process.pid} on " in second.stderr
        before = checkpoints(run)[-1]
        job.wait_for(lambda: checkpoints(run)[-1] > before)  # the first one goes on
        job.kill()


def test_who_lost_the_lease_writes_no_checkpoint_any_more(s3: Proxy, disk: Path):
    run = url("lost/run")
    with running(*training(url("data"), run, training__max_steps=0, training__patience=0)) as job:
        job.wait_for(lambda: checkpoints(run))
        [lease] = list_folder(run / ".lock")
        other = {"pid": 1, "host": "other", "id": "other", "beat": 1}
        remote.write_bytes(lease.with_name(f"{int(lease.name) + 1:09d}"), json.dumps(other).encode())
        taken = time.monotonic()
        then = checkpoints(run)
        assert job.end() == 2
    assert time.monotonic() - taken < 60
    assert "another process took it over, as this one did not answer; it writes no more" in job.stderr
    assert "Traceback" not in job.stderr
    assert set(checkpoints(run)) <= {*then, f"step-{int(then[-1][5:]) + 7:09d}"}
    assert f"{int(lease.name) + 1:09d}" in [path.name for path in list_folder(run / ".lock")]


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_server_that_never_answers_is_one_line(s3: Proxy, disk: Path, tmp_path: Path, fault: str):
    s3.fault = lambda method, path: fault if path.endswith("part-00000.parquet") and method == "GET" else None
    job = do(*training(url("data"), tmp_path / "run"), code=2)
    lines = [line for line in job.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert f"s3://{BUCKET}/data/" in lines[0]
    assert "Traceback" not in job.stderr
    assert "opensesame" not in job.stdout + job.stderr


def test_no_file_holds_a_password(s3: Proxy, disk: Path):
    run = url("secret/run")
    do(*training(url("data"), run, training__max_steps=7))
    for content in itertools.chain(contents(run).values(), contents(url("data")).values()):
        assert b"opensesame" not in content
        assert b"tester" not in content


def test_reading_ahead_hides_a_slow_server(s3: Proxy, tmp_path_factory: pytest.TempPathFactory):
    """With 50 ms added to every request, a step waits for its data a tenth of the time at most."""
    folder = tmp_path_factory.mktemp("slow")
    do("synth", "merrec", folder / "raw", "--events", 600_000)
    do("prepare", "merrec", folder / "raw", folder / "data")
    put(folder / "data", url("slow/data"))
    s3.delay = 0.05
    once = {"training__max_steps": 0, "training__max_epochs": 1, "checkpoint__every_steps": 0}
    do(*training(url("slow/data"), url("slow/run"), **once), ranks=2)
    seconds = read_json(url("slow/run") / "results.json")["seconds"]
    print(seconds, len(s3.requests))
    assert seconds["data_wait"] <= 0.1 * seconds["train"]
